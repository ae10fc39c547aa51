"""One trajectory in the making: its conversation, its turns, and what is left of its token budget.

Token-in, token-out: what the engine sampled is appended as sampled (mask 1), what stands between two generations is
appended by the ledger as context (mask 0), and nothing is ever encoded again.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rl.chat.ledger import Ledger
from rl.chat.renderer import Renderer
from rl.chat.stopping import begins_stop, completes_stop
from rl.interfaces import Sampler
from rl.observability.clock import wall_time
from rl.thoughts import OPEN, is_thinking
from rl.types import (
    FinishReason,
    FloatArray,
    IntArray,
    Message,
    Prompt,
    Sampling,
    SequenceStart,
    StopReason,
    TokenSequence,
    Trajectory,
    Turn,
)

_HEADER_TOKENS = 16
"""Tokens that the end of a header is looked for in."""


@dataclass(slots=True, frozen=True)
class Sampled:
    """The tokens of one turn, as the engine gave them."""

    prompt_ids: IntArray
    """[P] int32, the turn's context. These are views of the sequence."""
    token_ids: IntArray
    """[L] int32."""
    logprobs: FloatArray
    """[L] float32, of the distribution that the turn was sampled from."""


@dataclass(slots=True)
class Episode:
    """A trajectory in the making."""

    engine: Sampler
    renderer: Renderer
    prompt: Prompt
    sample_index: int
    sampling: Sampling
    """`max_tokens` bounds one turn; `seed` is the base from which each request's seed is derived."""
    stop: tuple[str, ...]
    """Strings that end a turn, but not within a thought."""
    max_context: int
    """Tokens a context may reach: prompt and everything after it."""
    max_response: int
    """Tokens the response may reach, as `Trajectory.response_length` counts them."""
    began_at: float = field(default_factory=time.monotonic)
    """Reading of `time.monotonic`; the `start_s` of turns and results count from it."""
    session_id: str = ""
    """Requests of the same session go to the same engine; by default `id`."""
    ledger: Ledger = field(init=False)
    turns: list[Turn] = field(default_factory=list)
    given: dict[str, Any] | None = None
    """As `Trajectory.environment`, with `turn_scores` in the order in which turns began."""
    _running: dict[int, int] = field(default_factory=dict)
    """Budgets of the turns that are being sampled, by their place among `turns`."""
    _places: list[tuple[TokenSequence, int]] = field(default_factory=list)
    """Where the tokens of each turn begin."""
    _logprobs: dict[int, list[float]] = field(default_factory=dict)
    """Log-probs of turns that are not trained on, by their place among `turns`."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.renderer)
        self.session_id = self.session_id or self.id

    @property
    def id(self) -> str:
        """`<prompt id>/<sample index>`."""
        return f"{self.prompt.id}/{self.sample_index}"

    def room(self, sequence: TokenSequence) -> int:
        """Tokens that may still follow in a sequence."""
        return self.room_behind(len(sequence.token_ids), self.ledger.response_length)

    def room_behind(self, context_length: int, response_length: int) -> int:
        """Tokens that may still follow behind a context, beside what turns that are being sampled may still take."""
        granted = sum(budget - self.turns[number].num_tokens for number, budget in self._running.items())
        return min(self.max_context - context_length, self.max_response - response_length - granted)

    async def generate(
        self,
        sequence: TokenSequence,
        budget: int,
        *,
        sampling: Sampling | None = None,
        stop: tuple[str, ...] | None = None,
        name: str | None = None,
    ) -> Turn:
        """Sample one turn of at most `budget` tokens, in as many spans as weight publishes cut it into.

        A turn that is cancelled or fails between two spans keeps its tokens as context: the caller did not get them.

        A stop string inside a thought cuts it too. Where a span may end within a stop string, the next one is of a
        single token, since the engine would not see the rest of that string.

        Args:
            sequence: As the ledger prepared it.
            budget: At least 1; `sampling.max_tokens` bounds it too.
            sampling: This turn's; by default the episode's. Tokens of another distribution are not trained on.
            stop: Strings that end this turn; by default the episode's.
            name: What the seed is derived from; by default the turn's number, in the order in which turns begin.

        Returns:
            The turn, which `turns` has from its beginning on.

        Raises:
            RolloutError: The engine died.
        """
        sampling = sampling or self.sampling
        number, budget = len(self.turns), min(budget, sampling.max_tokens)
        self.turns.append(
            Turn(
                text="",
                num_tokens=0,
                begins_in_thought=self._begins_in_thought(sequence),
                is_trained=distribution_of(sampling) == distribution_of(self.sampling),
            )
        )
        self._places.append((sequence, len(sequence.token_ids)))
        self._running[number] = budget
        try:
            name = str(number) if name is None else name
            return await self._sample(sequence, number, budget, sampling, self.stop if stop is None else stop, name)
        except BaseException:
            self._give_up(number)
            raise
        finally:
            del self._running[number]

    async def _sample(
        self,
        sequence: TokenSequence,
        number: int,
        budget: int,
        sampling: Sampling,
        own_stop: tuple[str, ...],
        name: str,
    ) -> Turn:
        start, first, turn = time.monotonic(), len(sequence.token_ids), self.turns[number]
        turn.start_s = start - self.began_at
        stop = sampling.stop + own_stop
        for span in itertools.count():
            before = turn.text
            is_watched = begins_stop(before, stop)
            seed = request_seed(sampling.seed or 0, self.prompt.id, self.sample_index, name, span)
            max_tokens = 1 if is_watched else budget - turn.num_tokens
            generation = await self.engine.generate(
                _ids(sequence),
                replace(sampling, max_tokens=max_tokens, stop=stop, seed=seed),
                session_id=self.session_id,
            )
            finish = generation.finish_reason
            if finish is FinishReason.ABORT and (sampling.json_schema or sampling.structural_tag):
                await asyncio.sleep(0)
                continue  # the next span would follow the form from its beginning
            if turn.is_trained:
                sequence.append_sampled(generation.token_ids, generation.logprobs, generation.policy_version)
            else:
                sequence.append_context(generation.token_ids)
                self._logprobs.setdefault(number, []).extend(generation.logprobs)
            turn.num_tokens += len(generation.token_ids)
            turn.checksum = zlib.crc32(np.array(generation.token_ids, np.int32).tobytes(), turn.checksum or 0)
            turn.text = self.renderer.decode(_ids(sequence, first))
            turn.generate_s = time.monotonic() - start
            if finish is FinishReason.STOP or (is_watched and completes_stop(turn.text, before, stop)):
                if self._is_over(sequence, turn, own_stop):
                    return turn
            elif finish is FinishReason.LENGTH and not is_watched:
                break
            if turn.num_tokens >= budget:
                break
            await asyncio.sleep(0)  # an engine that aborts again at once must not starve the other trajectories
        turn.is_cut = True
        return turn

    def _give_up(self, number: int) -> None:
        """Train on nothing of a turn whose caller got no answer."""
        turn, (sequence, start) = self.turns[number], self._places[number]
        if turn.is_trained:
            self._logprobs[number] = sequence.logprobs[start:].tolist()
            sequence.drop_sampled(start)
            turn.is_trained = False

    def sampled(self, number: int) -> Sampled:
        """The tokens of a turn, by its place among `turns`."""
        sequence, start = self._places[number]
        end = start + self.turns[number].num_tokens
        own = self._logprobs.get(number)
        logprobs = sequence.logprobs[start:end] if own is None else np.array(own, np.float32)
        return Sampled(sequence.token_ids[:start], sequence.token_ids[start:end], logprobs)

    def said(self, turn: Turn) -> Message:
        """A turn as a message, in the model's own words."""
        return {"role": "assistant", "content": self.renderer.strip_end_of_turn(turn.text)}

    def finish(self, stop_reason: StopReason, wall_s: float) -> Trajectory:
        """The trajectory, not yet scored.

        Turns stand in the order of their tokens; where the conversation branched, the sequence that was sampled last
        comes last, so that the last turn stays the last.
        """
        last_turn = {id(sequence): number for number, (sequence, _) in enumerate(self._places)}
        began = self.ledger.sequences
        places = sorted(range(len(began)), key=lambda i: last_turn.get(id(began[i]), -1))
        sequences = [began[i] for i in places]
        rank = {id(sequence): number for number, sequence in enumerate(sequences)}
        for turn, (sequence, _) in zip(self.turns, self._places, strict=True):
            turn.sequence = rank[id(sequence)]
        order = sorted(range(len(self.turns)), key=lambda i: (rank[id(self._places[i][0])], self._places[i][1]))
        given = dict(self.given) if self.given is not None else None
        if given is not None and given.get("turn_scores"):
            scores = given["turn_scores"]  # a turn that the deadline interrupted has none
            given["turn_scores"] = [scores[i] if i < len(scores) else 0.0 for i in order]
        return Trajectory(
            prompt=self.prompt,
            sample_index=self.sample_index,
            sequences=sequences,
            turns=[self.turns[i] for i in order],
            stop_reason=stop_reason,
            environment=given,
            wall_s=wall_s,
            started_at=wall_time(self.began_at),
            starts=_renumbered(self.ledger.starts, places),
        )

    def _is_over(self, sequence: TokenSequence, turn: Turn, stop: tuple[str, ...]) -> bool:
        """Whether a stop ends the turn: a stop string of the parser does not within a thought."""
        is_ended = _ids(sequence, -1)[0] in self.renderer.end_of_turn_ids
        return is_ended or not stop or not is_thinking(turn.text, is_open=turn.begins_in_thought)

    def _begins_in_thought(self, sequence: TokenSequence) -> bool:
        """Whether the template's header of the turn has opened a thought."""
        return self.renderer.decode(_ids(sequence, -_HEADER_TOKENS)).rstrip().endswith(OPEN)


def _renumbered(starts: list[SequenceStart], places: list[int]) -> list[SequenceStart]:
    """How the sequences at some places began, in this order."""
    numbers = {place: number for number, place in enumerate(places)}
    found = [starts[place] for place in places]
    return [s if s.branches_from is None else replace(s, branches_from=numbers[s.branches_from]) for s in found]


def distribution_of(sampling: Sampling) -> tuple[float, float, int, float, str | None]:
    """What log-probs depend on."""
    form = sampling.json_schema or sampling.structural_tag
    return sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, form


def request_seed(base: int, prompt_id: str, sample_index: int, turn: int | str, span: int) -> int:
    """Seed of one engine request: a hash of what names it, the same in every process and for every batch size.

    Args:
        base: The run's seed.
        prompt_id: Id of the dataset row.
        sample_index: Number of the trajectory in its group.
        turn: Its number from 0, or another name of it.
        span: From 0; counts the times a weight publish interrupted the turn.

    Returns:
        An integer of 32 bits.
    """
    name = f"{base}/{prompt_id}/{sample_index}/{turn}/{span}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def _ids(sequence: TokenSequence, start: int = 0) -> list[int]:
    ids: list[int] = sequence.token_ids[start:].tolist()
    return ids
