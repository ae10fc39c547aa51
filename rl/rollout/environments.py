"""What the policy acts in: an environment answers its turns. Tools are one (`rl.rollout.tool_environment`).

docs/environments.md shows how to write another. Classes with Gymnasium's methods are adapted by
`rl.rollout.gym_environment`; `rl.rollout.environment_code` finds the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from rl.rewards.outcome import read_outcome
from rl.rollout.user_code import UserCode
from rl.types import Message, Prompt, StopReason, Turn


class Step(NamedTuple):
    """An environment's answer to a turn. A plain tuple of its first values does too."""

    messages: Sequence[Message] = ()
    """What to append, of any role that the chat template allows there. If it does not fit into the token budget, the
    trajectory ends."""
    reward: float | None = None
    """Reward of the turn. Their sum is the score that the reward `environment` gives."""
    done: bool = False
    """The trajectory is over."""
    stop_reason: StopReason | None = None
    """Why it is over, where that is not `StopReason.FINISHED`."""


class Environment(Protocol):
    """One trajectory's environment; made when the trajectory begins.

    It may also have an attribute `is_last_turn`. Where that is true, the coming turn may use the tokens that
    `rl_config.final_answer_reserve` keeps back.
    """

    async def reset(self, prompt: Prompt) -> Sequence[Message]:
        """Begin. Returns the messages of the prompt, `prompt.messages` for example."""
        ...

    async def step(self, turn: Turn) -> Step:
        """Answer a turn. `turn.is_cut` says that the token budget ended it, `turn.is_last` that none can follow."""
        ...

    async def close(self) -> None:
        """Free what it holds, however the trajectory ended."""
        ...


async def reset(code: UserCode, environment: Environment, prompt: Prompt) -> list[Message]:
    """Begin a user's environment.

    Raises:
        UserCodeError: It raised, or returned no messages.
    """
    return _messages(code, "reset", await code.call("reset", lambda: environment.reset(prompt)))


async def step(code: UserCode, environment: Environment, turn: Turn) -> Step:
    """Ask a user's environment for its answer.

    Raises:
        UserCodeError: It raised, or returned something that is not a step.
    """
    given = await code.call("step", lambda: environment.step(turn))
    try:
        answer = Step(*given)
        stop_reason = None if answer.stop_reason is None else StopReason(answer.stop_reason)
    except (TypeError, ValueError):
        raise code.failure(f"step returned {given!r:.80}, not Step(messages, reward, done)") from None
    messages = _messages(code, "step", answer.messages)
    reward = None if answer.reward is None else _number(code, answer.reward)
    return Step(messages, reward, bool(answer.done), stop_reason)


def _messages(code: UserCode, what: str, given: Any) -> list[Message]:
    if isinstance(given, str | bytes | dict) or not isinstance(given, Sequence):
        raise code.failure(f"{what} returned {given!r:.80}, not a list of messages")
    if not all(isinstance(message, dict) for message in given):
        raise code.failure(f"{what} returned {given!r:.80}; a message is a dict with role and content")
    return [dict(message) for message in given]  # the environment may go on with its own


def _number(code: UserCode, reward: Any) -> float:
    outcome = read_outcome(reward, 0)
    if isinstance(outcome, str):
        raise code.failure(f"step returned {reward!r:.80} as reward, not a finite number")
    return outcome.score
