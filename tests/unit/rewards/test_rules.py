import json

import pytest
import reasoning_gym

from rl.errors import RewardError
from rl.rewards import rules
from rl.rewards.search import search_em
from rl.types import ToolStatus

OK, OVER, FAILED = ToolStatus.OK, ToolStatus.OVER_LIMIT, ToolStatus.ERROR


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{12}", "12", 1.0),
        (r"\boxed{12.0}", "12", 1.0),
        (r"\boxed{13}", "12", 0.0),
        ("thinking\n12<|im_end|>", "12", 1.0),
        ("12 is wrong\nno answer", "12", 0.0),
        ("", "", 0.0),
        (r"\boxed{}", "", 0.0),
    ],
)
def test_base_acc_compares_the_final_answer(trajectory, text, truth, score):
    assert rules.base_acc(trajectory(text, truth)) == score


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{1,000}", "work\n#### 1000", 1.0),
        (r"\boxed{72.00}", "72", 1.0),
        ("72", "72", 0.0),
        (r"\boxed{x}", "72", 0.0),
    ],
)
def test_gsm8k_boxed_compares_the_number_in_the_box(trajectory, text, truth, score):
    assert rules.gsm8k_boxed(trajectory(text, truth)) == score


LONG = "We look at one case after the other. " * 200


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"\boxed{x + 1}", "1+x", 1.0),
        (r"\boxed{2}", "3", 0.0),
        (r"\boxed{\frac{1}}", "0.5", 0.0),
        ("", "3", 0.0),
        (r"\boxed{}", "", 0.0),
        (r"\boxed{" + "9" * 500 + "}", "3", 0.0),
        # without a box, however long the turn is
        ("The answer is $42$.", "42", 1.0),
        (LONG + "The answer is $42$.", "42", 1.0),
        (LONG + "The answer is 42.", "42", 1.0),
        (LONG + "The answer is $41$.", "42", 0.0),
        (LONG + r"\boxed{" + "+".join(["1"] * 300) + "}", "300", 1.0),
        # case is no spelling of a symbol
        (r"\boxed{\Delta}", r"\delta", 0.0),
        (r"\boxed{N}", "n", 0.0),
        (r"\boxed{\frac{N}{2}}", "n/2", 0.0),
        (r"\boxed{2\Omega}", r"2\omega", 0.0),
        (r"\boxed{\text{N}}", "n", 0.0),
        (r"\boxed{\frac{N}{2}}", "N/2", 1.0),
        (r"\boxed{\text{Tuesday}}", "tuesday", 1.0),
        # marks of thousands, units and signs that math-verify does not know
        (r"\boxed{1\,250}", "1250", 1.0),
        (r"\boxed{1\,250}", "251", 0.0),
        (r"\boxed{1{,}250x}", "1250x", 1.0),
        (r"\boxed{3\text{ minutes}}", "3 hours", 0.0),
        (r"\boxed{√2}", r"\sqrt{2}", 1.0),
        (r"\boxed{x² + 1}", "x^2+1", 1.0),
        (r"\boxed{2·3}", "6", 1.0),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", 1.0),
        # a relation is no number, and several equations are not the last of them
        (r"\boxed{\geq 5}", "5", 0.0),
        (r"\boxed{< 5}", "5", 0.0),
        (r"\boxed{5}", r"\leqslant 5", 0.0),
        (r"\boxed{≥ 5}", r"x \ge 5", 1.0),
        (r"\boxed{x = 1, y = 2}", "x = 3, y = 2", 0.0),
        (r"\boxed{x = 1, y = 2}", "(1, 2)", 1.0),
        (r"\boxed{x = 1, y = 2}", "2", 0.0),
        (r"\boxed{x = 1 \text{ or } x = 2}", "2", 0.0),
        # shapes of the ground truth
        (r"\boxed{4}", r"So it is $\boxed{4}$.", 1.0),
        (r"\boxed{18}", "Some work.\n#### 18", 1.0),
        (r"\boxed{18}", '["18", "eighteen"]', 1.0),
        (r"\boxed{18}", "[18]", 1.0),
        (r"\boxed{18}", '{"target": "18"}', 1.0),
        (r"\boxed{[1,2]}", "[1, 2]", 1.0),  # an interval, not two answers
        (r"\boxed{1}", "[1, 2]", 0.0),
    ],
)
def test_math_acc_compares_as_mathematics(trajectory, text, truth, score):
    assert rules.math_acc(trajectory(text, truth)) == score


@pytest.mark.parametrize("reward", [rules.base_acc, rules.gsm8k_boxed, rules.math_acc])
@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{18\text{ dollars}}", "18", 1.0),
        (r"\boxed{50\%}", "50", 1.0),
        (r"\boxed{Lisboa}", '["Lisbon", "Lisboa"]', 1.0),
        (r"\boxed{18}", "work\n#### 18", 1.0),
        (r"\boxed{}", "", 0.0),
        (r"\boxed{N}", "n", 0.0),
        (r"\boxed{3 minutes}", "3 hours", 0.0),
        (r"\boxed{x = 1, y = 2}", "x = 3, y = 2", 0.0),
        (r"\boxed{\boxed{4}}", "4", 1.0),
        (r"\boxed{(4,5)}", "(4, 5)", 1.0),
        (r"\boxed{x + 1}", "x+1", 1.0),
        (r"\boxed{2:3}", "2 : 3", 1.0),
        (r"\boxed{1,234}", "1, 234", 0.0),
    ],
)
def test_rules_agree_on_one_answer(trajectory, reward, text, truth, score):
    assert reward(trajectory(text, truth)) == score


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ('{"answer": "4"}', "is a record without target or ground_truth, got fields answer."),
        ("[]", "is an empty list."),
        ('[{"a": 1}]', 'must be a text or a number, got {"a": 1}.'),
        ("[null]", "must be a text or a number, got null."),
        ("['Lisbon', 'Lisboa']", "looks like a list or a record, but is not JSON"),
        ("['Lisbon' 'Lisboa']", "looks like a list or a record, but is not JSON"),  # as numpy prints it
        ("('4', '5')", "looks like a list or a record, but is not JSON"),
        ("array(['4', '5'], dtype=object)", "looks like a list or a record, but is not JSON"),
    ],
)
def test_rules_reject_a_malformed_ground_truth(trajectory, truth, message):
    for reward in (rules.base_acc, rules.gsm8k_boxed, rules.math_acc, rules.retool_reward, search_em):
        with pytest.raises(RewardError) as error:
            reward(trajectory(r"\boxed{4}", truth))
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "statuses", "score"),
    [
        (r"\boxed{3}", (), 1.0),
        (r"\boxed{3}", (OK, OK), 1.0),
        (r"\boxed{4}", (), -1.0),
        (r"\boxed{4}", (OK,), -0.9),
        (r"\boxed{4}", (OK, FAILED, OVER), -0.8),
        (r"\boxed{4}", (OK,) * 9, -0.6),
        ("3", (), -1.0),
    ],
)
def test_retool_reward_is_one_or_minus_one_plus_a_bonus_for_tools(trajectory, text, statuses, score):
    result = rules.retool_reward(trajectory(text, "3", *statuses))
    assert result["score"] == pytest.approx(score)
    assert result["acc"] == float(score == 1.0)


def test_retool_reward_without_bonus_is_one_or_minus_one(trajectory):
    assert rules.retool_reward(trajectory(r"\boxed{4}", "3", OK, OK), tool_bonus=0.0)["score"] == -1.0


def test_rewards_ignore_boxes_in_tool_results(trajectory):
    assert rules.base_acc(trajectory("no idea", "9", OK)) == 0.0


@pytest.mark.parametrize(
    ("text", "error", "score"),
    [
        (r"\boxed{1}", None, 1.0),
        (r"\boxed{1} \boxed{2}", None, 0.0),
        ("1", None, 0.0),
        (r"\boxed{1}", "not closed.", 0.0),
    ],
)
def test_format_requires_one_box_and_well_formed_calls(trajectory, text, error, score):
    assert rules.format_reward(trajectory(text, "1", OK, error=error)) == score


@pytest.mark.parametrize("task", ["chain_sum", "gcd", "decimal_arithmetic", "count_primes"])
def test_reasoning_gym_uses_the_scoring_function_of_the_task(trajectory, task):
    entry = reasoning_gym.create_dataset(task, size=1, seed=7)[0]
    columns = {"task": task, "entry": json.dumps(entry)}
    right = rules.reasoning_gym(trajectory(rf"\boxed{{{entry['answer']}}}", entry["answer"], **columns))
    wrong = rules.reasoning_gym(trajectory(r"\boxed{-99999}", entry["answer"], **columns), min_score=0.1)
    missing = rules.reasoning_gym(trajectory(entry["answer"], entry["answer"], **columns))
    assert (right, wrong, missing) == (1.0, 0.0, 0.0)


def test_reasoning_gym_names_missing_columns(trajectory):
    with pytest.raises(RewardError, match="needs the columns task and entry, got none"):
        rules.reasoning_gym(trajectory(r"\boxed{1}", "1"))
    with pytest.raises(RewardError, match="nosuchtask"):
        rules.reasoning_gym(trajectory(r"\boxed{1}", "1", task="nosuchtask", entry="{}"))
    with pytest.raises(RewardError, match="the column entry is not JSON"):
        rules.reasoning_gym(trajectory(r"\boxed{1}", "1", task="gcd", entry="{"))
    with pytest.raises(RewardError, match=r"the column entry must be an object, got \[\]"):
        rules.reasoning_gym(trajectory(r"\boxed{1}", "1", task="gcd", entry="[]"))
