"""Rollouts that a function of the user's leads: it calls the policy by messages, and the ledger keeps the tokens.

docs/environments.md shows one.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl.chat.ledger import Extension
from rl.chat.messages import normalized, reply_to
from rl.chat.parsers import Parser
from rl.config.schema import RLConfig
from rl.errors import ConfigError, RolloutError
from rl.rewards.outcome import Outcome, read_outcome
from rl.rollout.dialog import Dialog
from rl.rollout.episode import Episode, Sampled
from rl.rollout.tool_environment import ToolEnvironment, calls_of
from rl.rollout.user_code import OutOfTokensError, UserCode, load_named
from rl.types import Message, Sampling, StopReason, TokenSequence, ToolCall, Turn

BUILT_IN = "agent_loop"
"""The rollout function that is always there: policy and environment take turns (`rl.rollout.agent_loop`)."""


SERVICE = "service"
"""Clients of `rl serve` lead the trajectories."""


@dataclass(slots=True, frozen=True)
class Reply:
    """A sampled turn."""

    message: Message
    """In OpenAI's form, to be appended to the conversation: `content`, and where there are any `reasoning_content` and
    `tool_calls`. With the space around it, its thoughts or its ids changed or left out, it is still recognized."""
    turn: Turn
    sampled: Sampled
    """Its tokens."""
    stop_sequence: str | None = None
    """The stop string of the request that ended it. The message is without it, the tokens are not."""
    number: int = 0
    """Its place among the episode's turns, in the order in which they began."""

    @property
    def text(self) -> str:
        """What the turn says, without thoughts and calls."""
        text: str = self.message["content"]
        return text

    @property
    def calls(self) -> list[ToolCall]:
        """Its tool calls; one that could not be read has an `error`."""
        return self.turn.calls

    @property
    def is_cut(self) -> bool:
        """The token budget ended the turn, not the model."""
        return self.turn.is_cut


@dataclass(slots=True, frozen=True)
class _Sampled:
    """A turn that is not yet recorded."""

    sequence: TokenSequence
    turn: Turn
    number: int
    """Its place among the episode's turns."""
    name: str
    """What its seed is derived from."""


class Policy:
    """The model, as a rollout function sees it. All turns belong to one trajectory."""

    def __init__(self, episode: Episode, parser: Parser, tools: ToolEnvironment) -> None:
        self._episode, self._parser, self._tools = episode, parser, tools
        self.engine_error: RolloutError | None = None
        """The engine died, though the function may have caught it."""
        self._asked: Counter[int] = Counter()
        """How often each context was asked for, by its hash."""
        self._answered: list[int] = []
        """Numbers of the turns that the caller got, by their place among the episode's."""
        self.stop_reason: StopReason | None = None
        """Another end that the function may not have noticed."""

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        dialog: Dialog | None = None,
    ) -> Reply:
        """Sample the assistant's turn behind some messages.

        Several calls may run at once, within one budget. Earlier replies among the messages keep their sampled tokens.

        Args:
            messages: The whole conversation, in OpenAI's form.
            max_tokens: Tokens of the turn at most; by default those of `sampling_config.max_tokens`.
            sampling: By default the run's. Tokens of another temperature, top_p, top_k or min_p are not trained on.
            dialog: Renderer and parser of the tools that the caller runs itself; by default those of the run's tools.

        Raises:
            OutOfTokensError: The budget of the trajectory or of the context is used up.
            DataError: A message is malformed.
            ModelError: The template refuses the messages.
            RolloutError: The engine died.
        """
        episode = self._episode
        renderer, parser = (dialog.renderer, dialog.parser) if dialog else (episode.renderer, self._parser)
        stop = () if dialog and not renderer.tools else parser.stop  # without tools nothing is a call
        extension = episode.ledger.plan(messages, renderer)
        turn = await self._sample(extension, max_tokens, sampling, stop if dialog else None)
        turn.turn.asked = self._said_before(extension)
        if dialog is None:
            self._tools.read_calls(turn.turn)
        elif renderer.tools:
            turn.turn.calls = calls_of(turn.turn, renderer, parser)
        text = renderer.strip_end_of_turn(turn.turn.text)
        ended_by = self._stop_sequence(text, turn.turn, sampling)
        message = reply_to(turn.turn, text.removesuffix(ended_by or ""), parser, f"call-{turn.name}")
        return self._record(turn, message, ended_by)

    async def complete(
        self, prompt: str | Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Reply:
        """Sample what follows a text or token ids, without a chat template.

        A prompt that goes on from an earlier prompt and its reply keeps their tokens.

        Args:
            prompt: Not empty.
            max_tokens: See `chat`.
            sampling: See `chat`.

        Raises:
            OutOfTokensError: The budget of the trajectory or of the context is used up.
            RolloutError: The engine died.
        """
        ledger, renderer = self._episode.ledger, self._episode.renderer
        extension = ledger.plan_text(prompt) if isinstance(prompt, str) else ledger.plan_tokens(prompt)
        turn = await self._sample(extension, max_tokens, sampling, ())
        turn.turn.asked = [{"role": "prompt", "content": renderer.decode(extension.token_ids)}]
        ids = self._episode.sampled(turn.number).token_ids.tolist()
        text = renderer.decode(ids[:-1] if ids and ids[-1] in renderer.end_of_turn_ids else ids)
        ended_by = self._stop_sequence(text, turn.turn, sampling)
        return self._record(turn, {"role": "assistant", "content": text.removesuffix(ended_by or "")}, ended_by)

    async def _sample(
        self, extension: Extension, max_tokens: int | None, sampling: Sampling | None, stop: tuple[str, ...] | None
    ) -> _Sampled:
        """Sample a turn behind what a request adds to the ledger."""
        episode = self._episode
        room = episode.room_behind(extension.context_length, episode.ledger.response_length + extension.num_added)
        if room <= 0:
            self.stop_reason = self.stop_reason or StopReason.LENGTH
            raise OutOfTokensError(
                f"{episode.id}: no token is left for another turn. Turns that run at once share the budget: give each "
                "its max_tokens."
            )
        sequence, _ = episode.ledger.apply(extension)
        number, name = len(episode.turns), self._name(sequence, extension)
        try:
            turn = await episode.generate(
                sequence, min(room, max_tokens or room), sampling=sampling, stop=stop, name=name
            )
        except RolloutError as error:
            self.engine_error = error
            raise
        return _Sampled(sequence, turn, number, name)

    def _record(self, sampled: _Sampled, message: Message, ended_by: str | None) -> Reply:
        episode, number = self._episode, sampled.number
        episode.ledger.record(sampled.sequence, message)
        self._answered.append(number)
        return Reply(message, sampled.turn, episode.sampled(number), ended_by, number)

    @property
    def episode(self) -> Episode:
        """What the turns belong to."""
        return self._episode

    @property
    def answered(self) -> list[int]:
        """Places of the turns that the caller got among the episode's, ascending: `turn_scores` has one for each."""
        return sorted(self._answered)

    @property
    def num_answered(self) -> int:
        """Turns that the caller got. One that it gave up waiting for is not among them."""
        return len(self._answered)

    def _name(self, sequence: TokenSequence, extension: Extension) -> str:
        """What a turn's seed is derived from: its depth in the conversation, whatever the order of the requests."""
        context = hash(sequence.token_ids.tobytes())
        self._asked[context] += 1
        again = self._asked[context] - 1
        return f"{extension.num_turns}.{again}" if again else f"{extension.num_turns}"

    def _said_before(self, extension: Extension) -> list[Message]:
        """The caller's own words before a turn, for readers of the trajectory."""
        own = [normalized(message) for message in self._episode.prompt.messages]
        if extension.new_messages == own:
            return []
        runs_tools = any(turn.results for turn in self._episode.turns)
        return [m for m in extension.new_messages if m["role"] != "tool" or not runs_tools]

    def _stop_sequence(self, text: str, turn: Turn, sampling: Sampling | None) -> str | None:
        """The stop string of a request's own that ended a turn."""
        if turn.is_cut or sampling is None:
            return None
        own = set(sampling.stop) - set(self._episode.sampling.stop)
        return max((stop for stop in own if text.endswith(stop)), key=len, default=None)

    def end(self, outcome: Outcome | str | None, code: UserCode) -> StopReason:
        """End the trajectory with what the user's function returned.

        Args:
            outcome: From `read_outcome`; None without a score.
            code: The function.

        Raises:
            UserCodeError: The outcome is not a score.
            RolloutError: The engine died.
        """
        if self.engine_error is not None:
            raise self.engine_error
        if isinstance(outcome, str):
            raise code.failure(outcome)
        if outcome is not None:
            self._episode.given = _as_returned(self._placed(outcome, code))
        is_cut = any(turn.is_cut for turn in self._episode.turns[-1:])
        return self.stop_reason or (StopReason.LENGTH if is_cut else StopReason.FINISHED)

    def _placed(self, outcome: Outcome, code: UserCode) -> Outcome:
        """An outcome with a score for each of the episode's turns: those that the caller did not get have 0."""
        if not (given := outcome.turn_scores):
            return outcome
        if len(given) != self.num_answered:
            raise code.failure(f"returned {len(given)} turn_scores, not one for each of {self.num_answered} turns")
        scores = dict(zip(self.answered, given, strict=True))
        return replace(outcome, turn_scores=[scores.get(i, 0.0) for i in range(len(self._episode.turns))])

    async def run_calls(self, reply: Reply) -> list[Message]:
        """Run the tool calls of a reply with the tools of `rl_config.tool_config_path`, within the limits of a run.

        Returns:
            A tool message for each call, to be appended to the conversation; empty where it has none.
        """
        if not reply.calls:
            return []
        step = await self._tools.answer(reply.turn)
        if step.stop_reason is StopReason.TOOL_UNAVAILABLE:
            self.stop_reason = step.stop_reason
        ids = iter([call["id"] for call in reply.message.get("tool_calls", [])])
        messages = []
        for call, result in zip(reply.calls, reply.turn.results, strict=True):
            name = {"tool_call_id": next(ids)} if call.error is None else {}
            messages.append({"role": "tool", "content": result.text, **name})
        return messages


def load_rollout_function(rl: RLConfig) -> UserCode | None:
    """Find the rollout function that the configuration names; None for the built-in agent loop and for clients.

    Raises:
        ConfigError: There is none of this name, or it cannot be called with a prompt, a policy and
            `rollout_function_kwargs`.
    """
    where = "rl_config.rollout_function"
    if rl.rollout_function in (BUILT_IN, SERVICE):
        return None
    code = load_named(where, rl.rollout_function, [BUILT_IN, SERVICE], rl.rollout_function_kwargs)
    if isinstance(code.function, type):
        raise ConfigError(f"{where}: '{code.name}' is a class. Write `async def rollout(prompt, policy)`.")
    if not inspect.iscoroutinefunction(code.function):
        raise ConfigError(f"{where}: '{code.name}' must be `async def`, got {code.function!r:.80}.")
    code.check_call(2, "as rollout(prompt, policy, **kwargs)")
    return code


async def run_rollout_function(code: UserCode, episode: Episode, parser: Parser, tools: ToolEnvironment) -> StopReason:
    """Run a user's rollout function to its end.

    Raises:
        UserCodeError: It raised, or returned something that is not a score.
        RolloutError: The engine died.
    """
    policy = Policy(episode, parser, tools)
    try:
        value = await code.call("rollout", lambda: code.function(episode.prompt, policy, **code.kwargs))
    except OutOfTokensError:
        value = 0.0
    outcome = read_outcome(value, policy.num_answered) if value is not None else None
    return policy.end(outcome, code)


def _as_returned(outcome: Outcome) -> dict[str, Any]:
    """An outcome in the form that a reward function returns."""
    given: dict[str, Any] = {"score": outcome.score, **outcome.metrics, **outcome.texts}
    return {**given, "turn_scores": outcome.turn_scores} if outcome.turn_scores else given
