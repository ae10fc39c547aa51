"""A small trajectory with every part, shared by the tests in this folder."""

from __future__ import annotations

from collections.abc import Sequence

from rl.batches import GroupHeader
from rl.observability.evaluation_metrics import evaluation_metrics, summarize
from rl.types import Prompt, StopReason, TokenSequence, ToolCall, ToolResult, ToolStatus, Trajectory, Turn
from tests.samples import group_of


def make_trajectory(
    source: str = "gcd",
    *,
    score: float | None = 1.0,
    index: int = 0,
    status: ToolStatus = ToolStatus.OK,
    stop_reason: StopReason = StopReason.FINISHED,
    prompt_id: str = "train-1",
) -> Trajectory:
    """Prompt of 3 tokens, 2 sampled, a tool result of 1, 1 sampled; 0.1 s of its 0.5 s waiting for the tool."""
    sequence = TokenSequence([1, 2, 3])
    sequence.append_sampled([4, 5], [-0.1, -0.2], 0)
    sequence.append_context([7])
    sequence.append_sampled([2], [-0.3], 1)
    call = ToolCall("calc", {"code": "print(4)"}, raw='{"name": "calc"}')
    result = ToolResult("calc", "4", status, queue_s=0.04, run_s=0.06, reward=0.25, metrics={"num_steps": 2.0})
    turns = [Turn("<tool_call>", 2, [call], [result], 0.2, 0.1), Turn("\\boxed{4}", 1, generate_s=0.2)]
    rewards = {} if score is None else {"right": score}
    error = "boom" if score is None else None
    prompt = Prompt(prompt_id, [{"role": "user", "content": "2+2?"}], "4", source)
    return Trajectory(prompt, index, [sequence], turns, stop_reason, score, rewards, reward_error=error, wall_s=0.5)


def make_group(source: str = "gcd", *, score: float | None = 1.0, prompt_id: str = "train-1") -> GroupHeader:
    """A group of one trajectory."""
    return group_of(make_trajectory(source, score=score, prompt_id=prompt_id))


def evaluation_metrics_of(groups: Sequence[GroupHeader]) -> dict[str, float]:
    """The metrics of an evaluation, as a run writes them."""
    return evaluation_metrics(groups, summarize(groups))
