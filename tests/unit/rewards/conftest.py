from collections.abc import Callable
from typing import Any

import pytest

from rl.types import Prompt, StopReason, TokenSequence, ToolCall, ToolResult, ToolStatus, Trajectory, Turn

MakeTrajectory = Callable[..., Trajectory]


@pytest.fixture
def trajectory() -> MakeTrajectory:
    """A trajectory that ends with the turn `text`, after one tool-call turn per status in `statuses`."""

    def make(text: str, truth: str, *statuses: ToolStatus, error: str | None = None, **extra: Any) -> Trajectory:
        turns = [
            Turn("calling", 3, [ToolCall("t", {}, error=error)], [ToolResult("t", "\\boxed{9}", status)])
            for status in statuses
        ]
        turns.append(Turn(text, 5))
        prompt = Prompt("p-0", [{"role": "user", "content": "?"}], truth, "test", extra)
        return Trajectory(prompt, 0, [TokenSequence([1, 2])], turns, StopReason.FINISHED)

    return make
