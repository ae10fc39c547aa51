"""The rewards that come with the project: rules that check the last turn against the ground truth."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from rl.errors import RewardError
from rl.rewards.answers import answer_text, boxed_answers, last_boxed, normalize_answer
from rl.types import ToolStatus, Trajectory

_NO_TIMEOUT = None  # math-verify's own time-outs need the main thread's signals; the caller has a deadline
_LONGEST_ANSWER = 400


def base_acc(trajectory: Trajectory) -> float:
    """1 when the last boxed answer, or without a box the last line, equals the ground truth after normalization.

    Args:
        trajectory: `prompt.ground_truth` holds the answer.

    Returns:
        1.0 or 0.0.
    """
    answer = last_boxed(trajectory)
    if answer is None:
        lines = answer_text(trajectory).splitlines()
        answer = lines[-1] if lines else ""
    return float(bool(answer) and normalize_answer(answer) == normalize_answer(trajectory.prompt.ground_truth))


def gsm8k_boxed(trajectory: Trajectory) -> float:
    """1 when the last boxed answer is the number of the ground truth, which may stand behind `####` as in GSM8K.

    Args:
        trajectory: `prompt.ground_truth` ends in the number.

    Returns:
        1.0 or 0.0.

    Source: GSM8K, arXiv:2110.14168, for the `####` mark.
    """
    answer, truth = last_boxed(trajectory), trajectory.prompt.ground_truth.rpartition("####")[2]
    if answer is None:
        return 0.0
    try:
        return float(float(normalize_answer(answer)) == float(normalize_answer(truth)))
    except ValueError:
        return float(normalize_answer(answer) == normalize_answer(truth))


def math_acc(trajectory: Trajectory) -> float:
    r"""1 when math-verify finds the last boxed answer, or without a box the last turn, equal to the ground truth.

    Args:
        trajectory: `prompt.ground_truth` is LaTeX or plain, with or without `\boxed`.

    Returns:
        1.0 or 0.0.

    Source: the math-verify library.
    """
    answer = last_boxed(trajectory)
    if answer is None:
        answer = answer_text(trajectory)
    return float(_is_equal(answer, trajectory.prompt.ground_truth))


def retool_reward(trajectory: Trajectory, *, tool_bonus: float = 0.1) -> dict[str, float]:
    r"""1 for a correct boxed answer, -1 for any other, a little less bad where tools were used.

    score = 1 if correct, else min(-0.6, -1 + tool_bonus * (calls that ran)); a trajectory without `\boxed` is wrong.

    Args:
        trajectory: `prompt.ground_truth` is LaTeX or plain.
        tool_bonus: Added to a wrong answer's score for each call that ran; 0 gives ReTool's plain -1.

    Returns:
        `score`, and `acc`, 1.0 or 0.0.

    Source: ReTool, arXiv:2504.11536, for plus and minus one; verl's ReTool recipe for the bonus and its bound.
    """
    answer = last_boxed(trajectory)
    if answer is not None and _is_equal(answer, trajectory.prompt.ground_truth):
        return {"score": 1.0, "acc": 1.0}
    ran = (ToolStatus.OK, ToolStatus.ERROR, ToolStatus.TIMEOUT)
    num_calls = sum(result.status in ran for turn in trajectory.turns for result in turn.results)
    return {"score": max(-1.0, min(-0.6, -1.0 + tool_bonus * num_calls)), "acc": 0.0}


def format_reward(trajectory: Trajectory) -> float:
    r"""1 when the last turn holds exactly one `\boxed{...}` and every tool call was well-formed.

    Args:
        trajectory: Its calls carry the parser's errors.

    Returns:
        1.0 or 0.0.
    """
    is_well_formed = all(call.error is None for turn in trajectory.turns for call in turn.calls)
    return float(is_well_formed and len(boxed_answers(answer_text(trajectory))) == 1)


def reasoning_gym(trajectory: Trajectory, *, min_score: float = 0.0) -> float:
    """The score that the reasoning-gym task itself gives to the last boxed answer.

    Args:
        trajectory: `prompt.extra` holds `task`, the name of the task, and `entry`, its row as JSON
            (`question`, `answer`, `metadata`).
        min_score: Scores up to this are 0; some tasks give 0.01 for any answer at all.

    Returns:
        0.0 to 1.0; 0.0 without a boxed answer.

    Raises:
        RewardError: The columns are missing.

    Source: the reasoning-gym library, arXiv:2505.24760.
    """
    extra = trajectory.prompt.extra
    if "task" not in extra or "entry" not in extra:
        raise RewardError(
            f"reasoning_gym: the row needs the columns task and entry, got {', '.join(extra) or 'none'}. "
            "Write them with the data, or choose another rl_config.verifier_function."
        )
    answer = last_boxed(trajectory)
    if answer is None:
        return 0.0
    entry = extra["entry"]
    score = float(_score_function(extra["task"])(answer, json.loads(entry) if isinstance(entry, str) else entry))
    return score if score > min_score else 0.0


@cache
def _score_function(task: str) -> Any:
    from reasoning_gym.factory import get_score_answer_fn  # takes a second to import; only runs with such data pay it

    try:
        return get_score_answer_fn(task)
    except ValueError as error:
        raise RewardError(f"reasoning_gym: {error}. Correct the column task.") from error


def _is_equal(answer: str, truth: str) -> bool:
    """Equality of two answers: as normalized text, else as mathematics."""
    if normalize_answer(answer) == normalize_answer(truth):
        return bool(answer.strip())
    if not answer.strip() or len(answer) > _LONGEST_ANSWER:
        return False
    from math_verify import parse, verify  # loads sympy; only runs with such rewards pay it

    gold = parse(_as_math(truth), parsing_timeout=_NO_TIMEOUT)
    given = parse(_as_math(answer), parsing_timeout=_NO_TIMEOUT)
    return bool(verify(gold, given, timeout_seconds=_NO_TIMEOUT))


def _as_math(text: str) -> str:
    return text if "\\boxed" in text or "$" in text else f"${text}$"
