import json

import pytest
import reasoning_gym

from rl.errors import RewardError
from rl.rewards import rules
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


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"\boxed{x + 1}", "1+x", 1.0),
        (r"\boxed{2}", "3", 0.0),
        (r"\boxed{\frac{1}}", "0.5", 0.0),
        ("", "3", 0.0),
        (r"\boxed{" + "9" * 500 + "}", "3", 0.0),
    ],
)
def test_math_acc_compares_as_mathematics(trajectory, text, truth, score):
    assert rules.math_acc(trajectory(text, truth)) == score


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
def test_retool_reward_is_one_or_minus_one_and_softer_with_tools(trajectory, text, statuses, score):
    result = rules.retool_reward(trajectory(text, "3", *statuses))
    assert result["score"] == pytest.approx(score)
    assert result["acc"] == float(score == 1.0)


def test_retool_reward_without_bonus_is_plain(trajectory):
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
def test_format_wants_one_box_and_well_formed_calls(trajectory, text, error, score):
    assert rules.format_reward(trajectory(text, "1", OK, error=error)) == score


@pytest.mark.parametrize("task", ["chain_sum", "gcd", "decimal_arithmetic", "count_primes"])
def test_reasoning_gym_scores_by_the_task_itself(trajectory, task):
    entry = reasoning_gym.create_dataset(task, size=1, seed=7)[0]
    columns = {"task": task, "entry": json.dumps(entry)}
    right = rules.reasoning_gym(trajectory(rf"\boxed{{{entry['answer']}}}", entry["answer"], **columns))
    wrong = rules.reasoning_gym(trajectory(r"\boxed{-99999}", entry["answer"], **columns), min_score=0.1)
    missing = rules.reasoning_gym(trajectory(entry["answer"], entry["answer"], **columns))
    assert (right, wrong, missing) == (1.0, 0.0, 0.0)


def test_reasoning_gym_says_which_columns_it_needs(trajectory):
    with pytest.raises(RewardError, match="needs the columns task and entry, got none"):
        rules.reasoning_gym(trajectory(r"\boxed{1}", "1"))
    with pytest.raises(RewardError, match="nosuchtask"):
        rules.reasoning_gym(trajectory(r"\boxed{1}", "1", task="nosuchtask", entry="{}"))
