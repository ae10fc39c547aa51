"""Built-in rule-based rewards: they compare the last turn with the ground truth."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from rl.errors import RewardError
from rl.rewards.answers import answer_text, boxed_answers, is_same_answer, last_boxed
from rl.rewards.mathematics import is_equal
from rl.rewards.truths import accepted_answers
from rl.types import Prompt, ToolStatus, Trajectory


def base_acc(trajectory: Trajectory) -> float:
    """Return 1 if the last boxed answer (without a box, the last line) equals an accepted answer as text or number.

    Args:
        trajectory: `rl.rewards.truths.accepted_answers` reads its `prompt.ground_truth`.

    Returns:
        1.0 or 0.0.

    Raises:
        RewardError: The ground truth cannot be read.
    """
    answer = last_boxed(trajectory)
    if answer is None:
        lines = answer_text(trajectory).splitlines()
        answer = lines[-1] if lines else ""
    return float(any(is_same_answer(answer, truth) for truth in math_answers(trajectory.prompt)))


def environment(trajectory: Trajectory) -> dict[str, Any]:
    """What the environment or the rollout function gave: the sum of the rewards of its turns, or what was returned.

    Raises:
        RewardError: It gave nothing.
    """
    if trajectory.environment is None:
        raise RewardError("the environment or rollout function gave no reward. Give one, or take this reward out")
    return trajectory.environment


def gsm8k_boxed(trajectory: Trajectory) -> float:
    """Return 1 if the last boxed answer equals an accepted answer; the ground truth may have GSM8K's `####` mark.

    Args:
        trajectory: `rl.rewards.truths.accepted_answers` reads its `prompt.ground_truth`.

    Returns:
        1.0 or 0.0; 0.0 without a boxed answer.

    Raises:
        RewardError: The ground truth cannot be read.

    Source: GSM8K, arXiv:2110.14168, for the `####` mark.
    """
    answer = last_boxed(trajectory) or ""
    return float(any(is_same_answer(answer, truth) for truth in math_answers(trajectory.prompt)))


def math_acc(trajectory: Trajectory) -> float:
    r"""Return 1 if the last boxed answer (without a box, what math-verify extracts) equals an accepted answer.

    Args:
        trajectory: `rl.rewards.truths.accepted_answers` reads its `prompt.ground_truth`, LaTeX or plain.

    Returns:
        1.0 or 0.0.

    Raises:
        RewardError: The ground truth cannot be read.

    Source: the math-verify library, with the exceptions of `rl.rewards.mathematics`.
    """
    answer = last_boxed(trajectory)
    if answer is None:
        answer = answer_text(trajectory)
    return float(any(is_equal(answer, truth) for truth in math_answers(trajectory.prompt)))


def retool_reward(trajectory: Trajectory, *, tool_bonus: float = 0.1) -> dict[str, float]:
    r"""Return 1 for a correct boxed answer, otherwise -1 plus a small bonus for tool use.

    score = 1 if correct, else min(-0.6, -1 + tool_bonus * (calls that ran)). A trajectory without `\boxed` is wrong.

    Args:
        trajectory: `rl.rewards.truths.accepted_answers` reads its `prompt.ground_truth`, LaTeX or plain.
        tool_bonus: Added to the score of a wrong answer for each call that ran; with 0 the score is -1 as in ReTool.

    Returns:
        `score`, and `acc` (1.0 or 0.0).

    Raises:
        RewardError: The ground truth cannot be read.

    Source: ReTool, arXiv:2504.11536, for plus and minus one; verl's ReTool recipe for the bonus and its bound.
    """
    answer, truths = last_boxed(trajectory) or "", math_answers(trajectory.prompt)
    if any(is_equal(answer, truth) for truth in truths):
        return {"score": 1.0, "acc": 1.0}
    ran = (ToolStatus.OK, ToolStatus.ERROR, ToolStatus.TIMEOUT)
    num_calls = sum(result.status in ran for turn in trajectory.turns for result in turn.results)
    return {"score": max(-1.0, min(-0.6, -1.0 + tool_bonus * num_calls)), "acc": 0.0}


def format_reward(trajectory: Trajectory) -> float:
    r"""Return 1 if the last turn has exactly one `\boxed{...}` and no tool call has a parser error, else 0."""
    is_well_formed = all(call.error is None for turn in trajectory.turns for call in turn.calls)
    return float(is_well_formed and len(boxed_answers(answer_text(trajectory))) == 1)


def reasoning_gym(trajectory: Trajectory, *, min_score: float = 0.0) -> float:
    """Score the last boxed answer with the scoring function of the reasoning-gym task.

    Args:
        trajectory: `prompt.extra` contains `task`, the name of the task, and `entry`, its row as JSON
            (`question`, `answer`, `metadata`).
        min_score: Scores up to this value become 0, because some tasks give 0.01 for any answer.

    Returns:
        0.0 to 1.0; 0.0 without a boxed answer.

    Raises:
        RewardError: The columns are missing or cannot be read.

    Source: the reasoning-gym library, arXiv:2505.24760.
    """
    score_answer, entry = task_of(trajectory.prompt)
    answer = last_boxed(trajectory)
    if answer is None:
        return 0.0
    score = float(score_answer(answer, entry))
    return score if score > min_score else 0.0


def math_answers(prompt: Prompt) -> list[str]:
    """Read the accepted answers of a row for math rewards.

    Raises:
        RewardError: The ground truth cannot be read.
    """
    return accepted_answers(prompt.ground_truth, is_math=True)


def task_of(prompt: Prompt) -> tuple[Any, dict[str, Any]]:
    """Return the scoring function of a row's reasoning-gym task, and its entry.

    Raises:
        RewardError: The columns are missing or cannot be read.
    """
    extra = prompt.extra
    if extra.get("task") is None or extra.get("entry") is None:
        raise RewardError(
            f"the row needs the columns task and entry, got {', '.join(extra) or 'none'}. "
            "Write them with the data, or choose another rl_config.verifier_function."
        )
    entry = extra["entry"]
    try:
        entry = json.loads(entry) if isinstance(entry, str) else entry
    except ValueError as error:
        raise RewardError(f"the column entry is not JSON ({error}). Correct the row.") from error
    if not isinstance(entry, dict):
        raise RewardError(f"the column entry must be an object, got {entry!r:.80}. Correct the row.")
    return _score_function(str(extra["task"])), entry


@cache
def _score_function(task: str) -> Any:
    from reasoning_gym.factory import get_score_answer_fn  # imported here because it takes a second

    try:
        return get_score_answer_fn(task)
    except ValueError as error:
        raise RewardError(f"{error}. Correct the column task.") from error
