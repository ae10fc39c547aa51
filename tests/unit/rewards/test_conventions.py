"""Reward functions in the forms of verl's and TRL's documentation, and MindSpeed-RL's names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.config.load import load_config
from rl.config.moved import take_over
from rl.config.schema import Config
from rl.errors import RewardError
from rl.rewards.conventions import adapt, convention_of
from rl.rewards.registry import RewardSet, load_rewards
from rl.rewards.rows import row_problems
from rl.types import Prompt, StopReason, ToolCall, ToolResult, ToolStatus, Trajectory, Turn

VERL = '''
import re

def compute_score(data_source, solution_str, ground_truth, extra_info, bonus=0.1):
    """ReTool's form: the last box, and a smaller penalty for a wrong answer after tool calls."""
    boxes = re.findall(r"\\\\boxed{(.*?)}", solution_str)
    right = bool(boxes) and boxes[-1] == ground_truth
    score = 1.0 if right else -1.0
    if not right:
        score = min(-0.6, score + (extra_info["num_turns"] - 2) / 2 * bonus)
    return {"score": score, "acc": right, "pred": boxes[-1] if boxes else ""}

async def judged(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"math": 0.25}[data_source] + kwargs["offset"]

def of_one_dataset(solution_str, ground_truth, method="strict"):
    return float(solution_str == ground_truth)
'''

TRL = """
import re

def accuracy(completions, ground_truth, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if gold in content else 0.0 for content, gold in zip(contents, ground_truth)]

def plain_text(completions, prompts, answer, **kwargs):
    return [float(re.search(r"\\d+", text).group() == gold and prompt == "Add 2 and 2.")
            for text, prompt, gold in zip(completions, prompts, answer)]

def only_math(completions, task, log_metric, log_extra, **kwargs):
    log_metric("num", len(completions))
    log_extra("answer", [completion[-1]["content"] for completion in completions])
    return [0.5 if t == "math" else None for t in task]

async def later(completions, **kwargs):
    return [float("trainer_state" in kwargs or "completion_ids" in kwargs or "prompt" in kwargs)]

def scalar(completions, **kwargs):
    return 1.0

def of_tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "verl_rewards.py").write_text(VERL)
    (tmp_path / "trl_rewards.py").write_text(TRL)
    return tmp_path


@pytest.fixture
def load() -> Iterator[Any]:
    loaded: list[RewardSet] = []

    def make(*names: str, **kwargs: Any) -> RewardSet:
        loaded.append(load_rewards(names, [1.0] * len(names), **kwargs))
        return loaded[-1]

    yield make
    for rewards in loaded:
        rewards.close()


def after_a_call(text: str, truth: str, **extra: Any) -> Trajectory:
    """A call, its result, and an answer."""
    call, result = ToolCall("add", {"a": 2}), ToolResult("add", "4", ToolStatus.OK, metrics={"calc_reward": 0.75})
    turns = [Turn("<think>hm</think>call<|im_end|>", 3, [call], [result]), Turn(f"{text}<|im_end|>", 5)]
    return Trajectory(
        Prompt("p-1", [{"role": "user", "content": "Add 2 and 2."}], truth, "math", extra),
        0, [], turns, StopReason.FINISHED,
    )  # fmt: skip


async def test_verl_function_scores_as_it_does_there(files: Path, load: Any) -> None:
    name = f"{files}/verl_rewards.py:compute_score"
    scores = await load(name).score(after_a_call(r"\boxed{4}", "4"))
    assert scores.rewards == {name: 1.0, f"{name}/acc": 1.0}
    assert scores.reward_texts == {f"{name}/pred": "4"}
    # Two turns and an answered one make num_turns 4: min(-0.6, -1 + (4 - 2) / 2 * 0.3) = -0.7.
    scores = await load(name, kwargs={name: {"bonus": 0.3}}).score(after_a_call(r"\boxed{5}", "4"))
    assert scores.score == pytest.approx(-0.7)


async def test_async_verl_function_gets_its_arguments(files: Path, load: Any) -> None:
    name = f"{files}/verl_rewards.py:judged"
    scores = await load(name, kwargs={name: {"offset": 0.5}}).score(after_a_call("4", "4"))
    assert scores.score == 0.75


def test_verl_function_sees_the_row_and_the_whole_response() -> None:
    seen: dict[str, Any] = {}

    def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
        seen.update(data_source=data_source, solution=solution_str, truth=ground_truth, extra=extra_info)
        return 1.0

    row = {"reward_model": {"style": "rule", "ground_truth": {"target": ["4", "four"]}}, "extra_info": {"index": 7}}
    assert adapt("x:compute_score", compute_score)(after_a_call("It is 4.", '{"target": ["4", "four"]}', **row)) == 1.0
    assert seen == {
        "data_source": "math",
        "solution": "<think>hm</think>call\n4\nIt is 4.",
        "truth": {"target": ["4", "four"]},
        "extra": {"index": 7, "num_turns": 4, "rollout_reward_scores": {"add": 0.75}},
    }


def test_verl_function_of_one_dataset_gets_what_it_names() -> None:
    def of_one_dataset(solution_str: str, ground_truth: str) -> float:
        return float(solution_str == ground_truth)

    trajectory = Trajectory(Prompt("p", [], "4", ""), 0, [], [Turn("4</s>", 1)], StopReason.FINISHED)
    assert adapt("x:of_one_dataset", of_one_dataset)(trajectory) == 1.0


async def test_trl_function_gets_lists_of_one(files: Path, load: Any) -> None:
    accuracy, later = f"{files}/trl_rewards.py:accuracy", f"trl:{files}/trl_rewards.py:later"
    only = f"{files}/trl_rewards.py:only_math"
    scores = await load(accuracy, only, later).score(after_a_call("It is 4.", "hm", task="math", prompt="?"))
    assert scores.rewards == {accuracy: 1.0, only: 0.5, f"{only}/num": 1.0, later: 0.0}
    assert scores.reward_texts == {f"{only}/answer": "It is 4."}
    assert scores.score == 1.5


def test_trl_function_sees_messages() -> None:
    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        assert prompts == [[{"role": "user", "content": "Add 2 and 2."}]]
        assert completions == [
            [
                {
                    "role": "assistant",
                    "content": "<think>hm</think>call",
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}],
                },
                {"role": "tool", "name": "add", "content": "4"},
                {"role": "assistant", "content": "4"},
            ]
        ]
        assert {key: columns[key] for key in ("ground_truth", "data_source", "level")} == {
            "ground_truth": ["4"], "data_source": ["math"], "level": [3],
        }  # fmt: skip
        return [1.0]

    assert adapt("x:reward", reward)(after_a_call("4", "4", level=3)) == {"score": 1.0}


async def test_trl_function_that_reads_text_is_named_so(files: Path, load: Any) -> None:
    path = f"{files}/trl_rewards.py:plain_text"
    text = Trajectory(
        Prompt("p-1", [{"role": "user", "content": "Add 2 and 2."}], "", "", {"answer": "4"}),
        0, [], [Turn("It is 4.<|im_end|>", 3)], StopReason.FINISHED,
    )  # fmt: skip
    assert (await load(f"trl_text:{path}").score(text)).score == 1.0
    failed = await load(path).score(text)
    assert failed.score is None
    assert f"Completions are lists of messages here; a function that reads text is named trl_text:{path}" in str(
        failed.reward_error
    )


async def test_none_of_trl_takes_the_reward_out_of_the_sum(files: Path, load: Any) -> None:
    only = f"{files}/trl_rewards.py:only_math"
    code = after_a_call("x", "x", task="code")
    scores = await load(only, "base_acc").score(code)
    assert (scores.score, scores.rewards, scores.reward_error) == (1.0, {"base_acc": 1.0}, None)
    scores = await load(only).score(code)
    assert (scores.score, scores.reward_error) == (None, "no reward applies to this trajectory")


async def test_wrong_results_are_reward_failures(files: Path, load: Any) -> None:
    scores = await load(f"{files}/trl_rewards.py:scalar").score(after_a_call("4", "4"))
    assert "returned 1.0, not a list with a score for the one completion" in str(scores.reward_error)
    scores = await load(f"{files}/verl_rewards.py:judged").score(after_a_call("4", "4"))
    assert str(scores.reward_error).endswith("KeyError: 'offset'")


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("verl_rewards.py:compute_score", {"bonu": 1}, "Did you mean 'bonus'"),
        ("trl_rewards.py:of_tokens", {}, "'completion_ids', which is not given: rewards get no token ids"),
        ("verl:{}/trl_rewards.py:accuracy", {}, "'completions', which is not given: verl's convention has"),
    ],
)
def test_functions_that_cannot_be_called_are_errors(files: Path, name: str, kwargs: dict, reason: str) -> None:
    name = name.format(files) if "{}" in name else f"{files}/{name}"
    with pytest.raises(RewardError, match=re.escape(reason)):
        load_rewards([name], [1.0], {name: kwargs})


def test_rows_without_a_column_of_a_trl_function_are_problems(files: Path) -> None:
    name = f"trl_text:{files}/trl_rewards.py:plain_text"
    prompts = [Prompt("a-1", [], "", "", {"answer": "4"}), Prompt("a-2", [], "", "", {"level": 1})]
    (problem,) = row_problems(load_rewards([name], [1.0]).rewards, prompts, Path("a.jsonl"))
    assert problem.startswith(f"a.jsonl, row 2: {name}: the function needs the column 'answer', got ground_truth, ")
    given = load_rewards([name], [1.0], {name: {"answer": ["4"]}}).rewards
    assert list(row_problems(given, prompts, Path("a.jsonl"))) == []


def test_own_functions_keep_their_form() -> None:
    def own(trajectory: Trajectory, *, ground_truth: str = "") -> float:
        return 1.0

    assert convention_of("my.py:own", own) == ""
    assert adapt("my.py:own", own) is own
    assert convention_of("trl:my.py:own", own) == "trl"


def test_adapted_function_keeps_its_signature(files: Path) -> None:
    (reward,) = load_rewards([f"{files}/verl_rewards.py:of_one_dataset"], [1.0]).rewards
    assert list(inspect.signature(reward.function).parameters) == ["solution_str", "ground_truth", "method"]


def test_relative_path_behind_a_prefix_is_found_beside_the_configuration(files: Path) -> None:
    (files / "run.yaml").write_text(
        "rl_config:\n  verifier_function: ['trl_text:trl_rewards.py:plain_text']\n  verifier_weight: [1.0]\n"
        "  verifier_kwargs: {'trl_text:trl_rewards.py:plain_text': {answer: ['4']}}\n"
    )
    rl = load_config("run", (), files).rl_config
    assert rl.verifier_function == [f"trl_text:{files}/trl_rewards.py:plain_text"]
    assert list(rl.verifier_kwargs) == rl.verifier_function


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("acc", "math_acc"),
        ("acc_for_dapo", "math_acc"),
        ("acc_for_ppo", "math_acc"),
        ("base_acc", "base_acc"),
        ("format", "format"),
        ("math_17k_acc", "math_acc"),
        ("math_verify_reward", "math_acc"),
        ("retool_reward", "retool_reward"),
        ("strict_format", "format"),
    ],
)
def test_mindspeed_verifier_is_known_by_its_name(there: str, here: str) -> None:
    tree, _ = take_over(Config, {"rl_config": {"verifier_function": [there]}})
    assert [reward.name for reward in load_rewards(tree["rl_config"]["verifier_function"], [1.0]).rewards] == [here]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["step"], "MindSpeed-RL's 'step', which counts steps such as `Step 1:`, does not exist here"),
        (["acc", "math_verify_reward"], "'math_verify_reward' is 'math_acc' here, which is named already"),
    ],
)
def test_mindspeed_verifier_that_is_not_here_is_answered_by_name(names: list[str], reason: str) -> None:
    tree, _ = take_over(Config, {"rl_config": {"verifier_function": names}})
    with pytest.raises(RewardError, match=re.escape(reason)):
        load_rewards(tree["rl_config"]["verifier_function"], [1.0] * len(names))
