"""The environment of tools: reads the calls of a turn, runs them within their limits, and answers with the results.

Turns without a call go to the user's environment, where there is one; otherwise they end the trajectory. Calls of the
tools of an environment go to it too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from rl.chat.truncation import truncate_tokens
from rl.config.schema import RLConfig
from rl.rollout import environments
from rl.rollout.environment_code import EnvironmentCode
from rl.rollout.environments import Environment, Step
from rl.rollout.gym_environment import GymEnvironment
from rl.rollout.user_code import UserCodeError
from rl.thoughts import OPEN
from rl.types import Message, Prompt, StopReason, ToolCall, ToolResult, ToolStatus, Turn

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0
"""Seconds that releasing a trajectory's tools or environment may take."""


class Session(Protocol):
    """The tool use of one trajectory (`rl.tools.execution.ToolSession`)."""

    async def execute(self, call: ToolCall) -> ToolResult:
        """Run one call; what went wrong is in the result's status."""
        ...

    async def close(self) -> None:
        """Release the tools."""
        ...


class TurnText(Protocol):
    """What is known of a tokenizer (`rl.chat.renderer.Renderer`)."""

    def strip_end_of_turn(self, text: str) -> str:
        """A turn's text without the token that ends it."""
        ...

    def text_offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a text covers."""
        ...


class CallReader(Protocol):
    """Reads calls out of a turn (`rl.chat.parsers.Parser`)."""

    def parse(self, text: str) -> list[ToolCall]:
        """All calls of a text, malformed ones among them."""
        ...


class ToolEnvironment:
    """The tools of one trajectory.

    Args:
        session: Runs calls; None without tools: a turn has no calls then.
        renderer: Built on the engine's tokenizer.
        parser: Reads calls out of a turn.
        rl: Limits of calls and results.
        inner: Where the environment of turns without a call comes from; None: such a turn is the answer.
        on_turn: Called with each turn when its calls are known.
        began_at: Reading of `time.monotonic` at the trajectory's start.
    """

    def __init__(
        self,
        session: Session | None,
        renderer: TurnText,
        parser: CallReader,
        rl: RLConfig,
        inner: EnvironmentCode | None,
        on_turn: Callable[[Turn], None],
        began_at: float = 0.0,
    ) -> None:
        self._session, self._renderer, self._parser, self._rl = session, renderer, parser, rl
        self._code, self._on_turn, self._began_at = inner, on_turn, began_at
        self._inner: Environment | None = None
        self._actor: GymEnvironment | None = None
        """The inner environment, if it has tools."""
        self._num_calls = 0
        self._shortener: _Shortener | None = None

    @property
    def is_last_turn(self) -> bool:
        """No turn may follow the coming one."""
        if self._code is not None and self._actor is None:
            return bool(self._code.run("is_last_turn", lambda: getattr(self._inner, "is_last_turn", False)))
        return not self._has_tools or self._num_calls >= self._rl.max_tool_calls

    @property
    def _has_tools(self) -> bool:
        return self._session is not None or self._actor is not None

    async def reset(self, prompt: Prompt) -> list[Message]:
        """The prompt's messages, or those of the inner environment."""
        if self._code is None:
            return prompt.messages
        self._inner = self._code.make()
        if isinstance(self._inner, GymEnvironment) and self._code.tools:
            self._actor = self._inner
        return await environments.reset(self._code, self._inner, prompt)

    async def step(self, turn: Turn) -> Step:
        """Answer the calls of a turn with their results. Calls in the last turn end the trajectory."""
        self._shortener = None
        self.read_calls(turn)
        if turn.calls:
            return Step(stop_reason=StopReason.TOOL_LIMIT) if turn.is_last else await self.answer(turn)
        if self._code is None or self._inner is None:
            return Step(done=not turn.is_cut)
        answer = await environments.step(self._code, self._inner, turn)
        turn.messages = list(answer.messages)
        return answer

    def read_calls(self, turn: Turn) -> None:
        """Fill in a turn's calls."""
        if self._has_tools:
            turn.calls = calls_of(turn, self._renderer, self._parser)
        self._on_turn(turn)

    async def close(self) -> None:
        """Release the tools and the inner environment. What goes wrong is logged."""
        if self._session is not None:
            await _close_in_time(self._session.close(), "its tools")
        if self._code is not None and self._inner is not None:
            try:
                await _close_in_time(self._code.call("close", self._inner.close), self._code.name)
            except UserCodeError as error:
                logger.warning("%s", error)

    async def answer(self, turn: Turn) -> Step:
        """Run the calls of a turn, at least one, and fill in their results."""
        start = time.monotonic()
        num_slots = min(self._rl.max_parallel_calls, self._rl.max_tool_calls - self._num_calls)
        accepted = turn.calls[:num_slots]
        self._num_calls += len(accepted)
        if len(accepted) == 1:
            turn.results = [await self._execute(accepted[0])]  # by far the most, and a task less
        else:
            turn.results = list(await asyncio.gather(*(self._execute(call) for call in accepted)))
        turn.results += [self._over_limit(call) for call in turn.calls[num_slots:]]
        for result in turn.results:
            result.start_s = start - self._began_at
        turn.tool_s = time.monotonic() - start
        texts = [result.text.encode("utf-8", "replace").decode("utf-8") for result in turn.results]
        cap = self._rl.max_tool_response_length
        messages = self._as_messages(turn, texts, cap)
        reward, done = self._actor.take_outcome() if self._actor is not None else (None, False)
        if any(result.status is ToolStatus.UNAVAILABLE for result in turn.results):
            return Step(stop_reason=StopReason.TOOL_UNAVAILABLE)
        if any(result.stop for result in turn.results):
            return Step(reward=reward, stop_reason=StopReason.TOOL_STOP)
        self._shortener = _Shortener(partial(self._as_messages, turn, texts), cap, len(texts))
        return Step(messages, reward, done)

    async def _execute(self, call: ToolCall) -> ToolResult:
        if self._actor is not None and (self._session is None or call.name in self._actor.tool_names):
            return await self._actor.execute(call)
        assert self._session is not None, "calls are read only where there are tools"
        return await self._session.execute(call)

    def shorten(self, excess: int) -> list[Message] | None:
        """The messages of the last step with about so many tokens less; None where they cannot be cut (further)."""
        return self._shortener(excess) if self._shortener is not None else None

    def _over_limit(self, call: ToolCall) -> ToolResult:
        text = (
            f"Error: not executed, because at most {self._rl.max_parallel_calls} calls are allowed in one turn and "
            f"{self._rl.max_tool_calls} in all."
        )
        return ToolResult(call.name, text, ToolStatus.OVER_LIMIT)

    def _as_messages(self, turn: Turn, texts: Sequence[str], cap: int) -> list[Message]:
        """The results of a turn, cut to so many tokens each."""
        for result, text in zip(turn.results, texts, strict=True):
            result.text, result.is_truncated = truncate_tokens(
                text, self._renderer.text_offsets, cap, self._rl.tool_response_truncate_side
            )
        return [{"role": "tool", "content": result.text} for result in turn.results]


def calls_of(turn: Turn, renderer: TurnText, parser: CallReader) -> list[ToolCall]:
    """A turn's calls. One that the end of the budget cut off is no mistake of the model, and no call."""
    text = renderer.strip_end_of_turn(turn.text)
    calls = parser.parse(OPEN + text if turn.begins_in_thought else text)
    is_whole = [call.error is None and not call.lacks_end for call in calls]
    return list(itertools.compress(calls, is_whole)) if turn.is_cut else calls


class _Shortener:
    """Cuts results further, evenly."""

    def __init__(self, cut: Callable[[int], list[Message]], cap: int, num_results: int) -> None:
        self._cut, self._cap, self._num_results = cut, cap, num_results

    def __call__(self, excess: int) -> list[Message] | None:
        if self._cap == 0:
            return None
        self._cap = max(self._cap - math.ceil(excess / self._num_results), 0)
        return self._cut(self._cap)


async def _close_in_time(closing: Coroutine[Any, Any, None], what: str) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await closing
    except TimeoutError:
        logger.warning("%s: not released within %g s.", what, _CLOSE_TIMEOUT_S)
