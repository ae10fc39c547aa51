"""The reward: a function of a finished trajectory."""

from __future__ import annotations

from rl.rewards.answers import answer_text, boxed_answers
from rl.types import ToolStatus, Trajectory


def right(trajectory: Trajectory) -> dict[str, float]:
    r"""Score 1 if the last `\boxed{...}` is the right number, else 0. What else is returned becomes a metric."""
    answers = boxed_answers(answer_text(trajectory))
    is_right = bool(answers) and answers[-1] == trajectory.prompt.ground_truth
    calls = [result for turn in trajectory.turns for result in turn.results]
    used = any(result.status is ToolStatus.OK for result in calls)
    return {"score": float(is_right), "used_tool": float(used)}
