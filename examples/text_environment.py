"""The reward that the recipes on TRL's TextEnvironment share: a number in `Result=12<submit>`, spaces allowed."""

from __future__ import annotations

import re

from rl.types import Trajectory

_RESULT = re.compile(r"Result\s*=\s*(-?\d+(?:\.\d+)?)\s*<submit>")


def right_result(trajectory: Trajectory) -> float:
    """Score 1 if the last turn submits the right number, to two places.

    Source: the rewards of TRL 0.11's calculator.py and python_interpreter.py (examples/research_projects/tools), which
    allow 0.01 and 0.1, and take the first of several results.
    """
    found = _RESULT.findall(trajectory.turns[-1].text) if trajectory.turns else []
    return float(len(found) == 1 and abs(float(found[0]) - float(trajectory.prompt.ground_truth)) < 0.005)
