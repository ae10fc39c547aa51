"""One trajectory: generate, call tools, append their results, until a `StopReason`.

Token-in, token-out: what the engine sampled is appended as sampled (mask 1), what the template puts between two
generations is appended as context (mask 0), and nothing is ever encoded again.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rl.chat.ledger import Ledger
from rl.chat.parsers import Parser
from rl.chat.renderer import Renderer
from rl.chat.stopping import begins_stop, completes_stop
from rl.chat.truncation import truncate_tokens
from rl.config.schema import Config
from rl.errors import RolloutError
from rl.interfaces import Engine
from rl.thoughts import OPEN, is_thinking
from rl.types import (
    FinishReason,
    Prompt,
    Sampling,
    StopReason,
    TokenSequence,
    ToolCall,
    ToolResult,
    ToolStatus,
    Trajectory,
    Turn,
)

logger = logging.getLogger(__name__)

_HEADER_TOKENS = 16
"""Tokens that the end of a header is looked for in."""

_CLOSE_TIMEOUT_S = 30.0
"""Seconds that releasing a trajectory's tools may take."""


class Session(Protocol):
    """The tool use of one trajectory (`rl.tools.execution.ToolSession`)."""

    async def execute(self, call: ToolCall) -> ToolResult:
        """Run one call; what went wrong is in the result's status."""
        ...

    async def close(self) -> None:
        """Release the tools."""
        ...


class Toolbox(Protocol):
    """Where tool sessions come from (`rl.tools.registry.Toolbox`)."""

    def open_session(self, trajectory_id: str) -> Session:
        """Begin the tool use of one trajectory."""
        ...


@dataclass(slots=True)
class _State:
    """A trajectory in the making."""

    prompt: Prompt
    sample_index: int
    sampling: Sampling
    session: Session | None
    ledger: Ledger
    max_context: int
    """Tokens a context may reach: prompt and everything after it."""
    max_response: int
    """Tokens the response may reach, as `Trajectory.response_length` counts them."""
    turns: list[Turn] = field(default_factory=list)
    num_calls: int = 0
    """Calls given to tools so far."""
    is_last_word: bool = False
    """The final turn has been opened."""

    @property
    def id(self) -> str:
        return f"{self.prompt.id}/{self.sample_index}"

    @property
    def sequence(self) -> TokenSequence:
        return self.ledger.sequence

    @property
    def room(self) -> int:
        return self.room_behind(len(self.sequence.token_ids), self.ledger.response_length)

    def room_behind(self, context_length: int, response_length: int) -> int:
        """Tokens that may still follow behind a context."""
        return min(self.max_context - context_length, self.max_response - response_length)


class AgentLoop:
    """Runs trajectories, any number at once.

    Args:
        engine: Samples tokens.
        renderer: Of the engine's tokenizer.
        toolbox: The tools; None for trajectories of one turn.
        parser: Reads tool calls out of a turn.
        config: The run's configuration.
        on_turn: Called with each turn when it has been generated, and once more when its calls have been answered.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        toolbox: Toolbox | None,
        parser: Parser,
        config: Config,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._toolbox = toolbox
        self._parser = parser
        self._on_turn = on_turn
        self._rl = config.rl_config
        self._max_model_len = config.generate_config.max_model_len
        self._seed = config.megatron_training.seed

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        """Run one trajectory to its end. A dead engine, a deadline or a broken service is its `StopReason`.

        With context length c and response length r so far (`Trajectory.response_length`), there is room for
        R = min(max_model_len - c, max_total_response_length - r) tokens, without `multi_turn_enable` for
        max_model_len - c. A turn may sample min(R - final_answer_reserve, max_tokens) of them, the final turn
        min(R, max_tokens). A turn is the final one when `max_tool_calls` calls have been given to tools (malformed ones
        count: so turns are bounded), when no more than the reserve is left, or when the turn before was cut by length
        and, there being a reserve, closed by force.

        Args:
            prompt: The dataset row.
            sample_index: Number of the trajectory in its group.
            sampling: `max_tokens` bounds one turn; `seed`, or the run's where it is None, is the base from which each
                request's seed is derived.

        Returns:
            The trajectory, not yet scored.
        """
        start = time.monotonic()
        ledger = Ledger(self._renderer, prompt.messages)
        max_response = self._rl.max_total_response_length if self._rl.multi_turn_enable else self._max_model_len
        session = self._toolbox.open_session(f"{prompt.id}/{sample_index}") if self._toolbox else None
        state = _State(prompt, sample_index, sampling, session, ledger, self._max_model_len, max_response)
        try:
            stop_reason = await self._run_in_time(state)
        finally:
            if session is not None:
                await _close(session, state.id)
        return Trajectory(
            prompt=prompt,
            sample_index=sample_index,
            sequences=ledger.sequences,
            turns=state.turns,
            stop_reason=stop_reason,
            wall_s=time.monotonic() - start,
        )

    async def _run_in_time(self, state: _State) -> StopReason:
        deadline = asyncio.timeout(self._rl.trajectory_timeout)
        try:
            async with deadline:
                return await self._run_turns(state)
        except TimeoutError:
            if not deadline.expired():
                raise
            logger.warning("%s: ended after %g s, at its deadline.", state.id, self._rl.trajectory_timeout)
            return StopReason.DEADLINE
        except RolloutError as error:
            logger.warning("%s: %s", state.id, error)
            return StopReason.ENGINE_FAILED

    async def _run_turns(self, state: _State) -> StopReason:
        while state.room > 0:
            has_calls_left = state.session is not None and state.num_calls < self._rl.max_tool_calls
            is_final = state.is_last_word or not has_calls_left or state.room <= self._rl.final_answer_reserve
            finish = await self._generate(state, state.room - (0 if is_final else self._rl.final_answer_reserve))
            turn = state.turns[-1]
            turn.calls = self._parse(state, turn, finish)
            self._on_turn(turn)
            if is_final and turn.calls:
                return StopReason.TOOL_LIMIT
            if turn.calls:
                stop_reason = await self._answer_calls(state, turn)
                self._on_turn(turn)
                if stop_reason is not None:
                    return stop_reason
            elif finish is not FinishReason.LENGTH:
                return StopReason.FINISHED
            elif is_final or not self._force_last_word(state):
                return StopReason.LENGTH
        return StopReason.LENGTH

    async def _generate(self, state: _State, budget: int) -> FinishReason:
        """Sample one turn of at most `budget` tokens, in as many spans as weight publishes cut it into.

        A stop string of the parser inside a thought cuts it too. Where a span may end within a stop string, the next
        one is of a single token, since the engine would not see the rest of that string.
        """
        start = time.monotonic()
        first = len(state.sequence.token_ids)
        turn = Turn(text="", num_tokens=0, begins_in_thought=self._begins_in_thought(state))
        state.turns.append(turn)
        budget = min(budget, state.sampling.max_tokens)
        stop = state.sampling.stop + (self._parser.stop if state.session is not None else ())
        base_seed = self._seed if state.sampling.seed is None else state.sampling.seed
        for span in itertools.count():
            before = turn.text
            is_watched = begins_stop(before, stop)
            seed = request_seed(base_seed, state.prompt.id, state.sample_index, len(state.turns) - 1, span)
            max_tokens = 1 if is_watched else budget - turn.num_tokens
            generation = await self._engine.generate(
                state.sequence.token_ids.tolist(),
                replace(state.sampling, max_tokens=max_tokens, stop=stop, seed=seed),
                session_id=state.id,
            )
            state.sequence.append_sampled(generation.token_ids, generation.logprobs, generation.policy_version)
            turn.num_tokens += len(generation.token_ids)
            turn.text = self._renderer.decode(state.sequence.token_ids[first:].tolist())
            turn.generate_s = time.monotonic() - start
            finish = generation.finish_reason
            if finish is FinishReason.STOP or (is_watched and completes_stop(turn.text, before, stop)):
                if self._is_over(state, turn):
                    return FinishReason.STOP
            elif finish is FinishReason.LENGTH and not is_watched:
                return FinishReason.LENGTH
            if turn.num_tokens >= budget:
                break
            await asyncio.sleep(0)  # an engine that aborts again at once must not starve the other trajectories
        return FinishReason.LENGTH

    def _is_over(self, state: _State, turn: Turn) -> bool:
        """Whether a stop ends the turn: a stop string of the parser does not within a thought."""
        is_ended = state.sequence.token_ids[-1] in self._renderer.end_of_turn_ids
        has_stops = state.session is not None and bool(self._parser.stop)
        return is_ended or not has_stops or not is_thinking(turn.text, is_open=turn.begins_in_thought)

    def _begins_in_thought(self, state: _State) -> bool:
        """Whether the template's header of the turn has opened a thought."""
        header = self._renderer.decode(state.sequence.token_ids[-_HEADER_TOKENS:].tolist())
        return header.rstrip().endswith(OPEN)

    def _parse(self, state: _State, turn: Turn, finish: FinishReason) -> list[ToolCall]:
        """The calls of a turn; one that the end of the budget cut off is no mistake of the model, and no call."""
        if state.session is None:
            return []
        text = self._renderer.strip_end_of_turn(turn.text)
        calls = self._parser.parse(OPEN + text if turn.begins_in_thought else text)
        is_cut = finish is FinishReason.LENGTH
        return [call for call in calls if call.error is None and not call.lacks_end] if is_cut else calls

    async def _answer_calls(self, state: _State, turn: Turn) -> StopReason | None:
        """Run the calls of a turn and append their results; a reason to stop, or None to go on."""
        assert state.session is not None, "calls are parsed only where there are tools"
        start = time.monotonic()
        num_slots = min(self._rl.max_parallel_calls, self._rl.max_tool_calls - state.num_calls)
        accepted = turn.calls[:num_slots]
        state.num_calls += len(accepted)
        if len(accepted) == 1:
            turn.results = [await state.session.execute(accepted[0])]  # by far the most, and a task less
        else:
            turn.results = list(await asyncio.gather(*(state.session.execute(call) for call in accepted)))
        turn.results += [self._over_limit(call) for call in turn.calls[num_slots:]]
        turn.tool_s = time.monotonic() - start
        texts = [result.text.encode("utf-8", "replace").decode("utf-8") for result in turn.results]
        self._set_texts(turn, texts, self._rl.max_tool_response_length)
        if any(result.status is ToolStatus.UNAVAILABLE for result in turn.results):
            return StopReason.TOOL_UNAVAILABLE
        if any(result.stop for result in turn.results):
            return StopReason.TOOL_STOP
        return None if self._append_results(state, turn, texts) else StopReason.LENGTH

    def _over_limit(self, call: ToolCall) -> ToolResult:
        text = (
            f"Error: not executed, because at most {self._rl.max_parallel_calls} calls are allowed in one turn and "
            f"{self._rl.max_tool_calls} in all."
        )
        return ToolResult(call.name, text, ToolStatus.OVER_LIMIT)

    def _set_texts(self, turn: Turn, texts: Sequence[str], max_tokens: int) -> None:
        for result, text in zip(turn.results, texts, strict=True):
            result.text, result.is_truncated = truncate_tokens(
                text, self._renderer.text_offsets, max_tokens, self._rl.tool_response_truncate_side
            )

    def _append_results(self, state: _State, turn: Turn, texts: Sequence[str]) -> bool:
        """Append the tool turn, its results cut so that the final answer keeps its reserve.

        What the template adds around the results may use up the reserve; false where not even one token would be left.
        """
        cap = self._rl.max_tool_response_length
        while True:
            addition = state.ledger.answer([result.text for result in turn.results])
            room = state.room_behind(addition.context_length, state.ledger.response_length + addition.num_results)
            excess = max(self._rl.final_answer_reserve, 1) - room
            if excess <= 0 or cap == 0:
                break
            cap = max(cap - math.ceil(excess / len(texts)), 0)
            self._set_texts(turn, texts, cap)
        if room <= 0:
            return False
        state.ledger.append(addition)
        return True

    def _force_last_word(self, state: _State) -> bool:
        """Close a turn that ran into the reserve and open the final one; false where nothing was kept back for it."""
        header = self._renderer.render_header(closed=state.ledger.is_closed)
        if self._rl.final_answer_reserve == 0 or len(header) >= state.room:
            return False
        state.sequence.append_context(header)
        state.is_last_word = True
        return True


def request_seed(base: int, prompt_id: str, sample_index: int, turn: int, span: int) -> int:
    """Seed of one engine request: a hash of what names it, the same in every process and for every batch size.

    Args:
        base: The run's seed.
        prompt_id: Of the dataset row.
        sample_index: Number of the trajectory in its group.
        turn: From 0.
        span: From 0; counts the times a weight publish interrupted the turn.

    Returns:
        An integer of 32 bits.
    """
    name = f"{base}/{prompt_id}/{sample_index}/{turn}/{span}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


async def _close(session: Session, trajectory_id: str) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await session.close()
    except TimeoutError:
        logger.warning("%s: its tools were not released within %g s.", trajectory_id, _CLOSE_TIMEOUT_S)
