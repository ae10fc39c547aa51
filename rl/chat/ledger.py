"""The one place where a conversation grows: messages on one side, token sequences on the other.

Whoever talks to the model hands over the whole list of messages each time, as clients of an HTTP endpoint do. The
ledger finds what it knows of them, keeps every token that was sampled as it was sampled, and renders only what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rl.chat.encoding import BREAK
from rl.chat.messages import is_echo, normalized
from rl.chat.renderer import Renderer
from rl.types import Message, SequenceStart, Start, TokenSequence


@dataclass(slots=True, frozen=True)
class _End:
    """Where a known part of a conversation ends."""

    num_messages: int
    num_tokens: int
    is_turn: bool
    """It ends in a turn that was sampled; otherwise in the header of one that is to be."""


@dataclass(slots=True, frozen=True)
class _Said:
    """The place of a sampled turn's tokens, without the one that ends it."""

    sequence: TokenSequence
    start: int
    end: int


@dataclass(slots=True)
class _Line:
    """A token sequence and the messages it says."""

    sequence: TokenSequence
    messages: list[Message]
    """`normalized`; a sampled turn as it was returned."""
    said: dict[int, _Said]
    """The sampled turns, by their place among the messages."""
    ends: list[_End]
    """Where it can be gone on from, in order."""
    renderer: Renderer
    why: Start
    """This and the next two: see `SequenceStart`."""
    parent: TokenSequence | None = None
    num_copied: int = 0


@dataclass(slots=True, frozen=True)
class Extension:
    """What a list of messages adds; nothing has been added yet."""

    messages: list[Message]
    token_ids: list[int]
    """Behind what is kept."""
    context_length: int
    """Tokens of the next turn's context."""
    num_added: int
    """Tokens that the response grows by: those put between turns, each counted once."""
    kept: int = 0
    """Tokens that are kept of the line."""
    line: _Line | None = field(default=None, repr=False)
    """Whose tokens or messages are known; None: the conversation is new."""
    end: _End | None = None
    """Where it is gone on from."""
    renderer: Renderer | None = field(default=None, repr=False)
    breaks: Start | None = None
    """Why a sequence begins; None: the line goes on."""

    @property
    def new_messages(self) -> list[Message]:
        """Those behind what is known."""
        return self.messages[self.end.num_messages :] if self.end is not None else self.messages

    @property
    def num_turns(self) -> int:
        """Sampled turns among the messages."""
        if self.line is None or self.end is None:
            return 0
        return sum(place < self.end.num_messages for place in self.line.said)


class Ledger:
    """The token sequences of one trajectory's conversations."""

    def __init__(self, renderer: Renderer) -> None:
        """Begin without messages.

        Args:
            renderer: Encodes and decodes the tokens, unless a request brings its own.
        """
        self._renderer = renderer
        self._lines: list[_Line] = []

    @property
    def sequences(self) -> list[TokenSequence]:
        """In the order in which they began.

        There are several where the chat template or the caller rewrote history, where two continuations have one
        prefix, and where the caller leads several conversations.
        """
        return [line.sequence for line in self._lines]

    @property
    def starts(self) -> list[SequenceStart]:
        """How each of `sequences` began."""
        numbers = {id(line.sequence): number for number, line in enumerate(self._lines)}
        return [
            SequenceStart(line.why, numbers[id(line.parent)] if line.parent else None, line.num_copied)
            for line in self._lines
        ]

    @property
    def response_length(self) -> int:
        """Tokens sampled, and tokens put between turns, each once; as `Trajectory.response_length`."""
        return sum(line.sequence.response_length for line in self._lines)

    def extend(self, messages: Sequence[Message]) -> tuple[TokenSequence, list[int]]:
        """Prepare the next turn of a conversation.

        The sequence is the caller's until `record`: asked again for the same messages, the ledger begins another.

        Args:
            messages: All of them, of any role. The assistant's are recognized where they say what was returned
                (`rl.chat.messages.is_echo`).

        Returns:
            The sequence to sample behind, with `append_sampled`, and the ids that it was extended by; all of them where
            it is new.

        Raises:
            ModelError: The template refuses the messages.
            DataError: A message is malformed.
        """
        return self.apply(self.plan(messages))

    def plan(self, messages: Sequence[Message], renderer: Renderer | None = None) -> Extension:
        """What `extend` would add, for questions of budget.

        Args:
            messages: See `extend`.
            renderer: Has the same tokenizer, and the tools of this request. A conversation keeps its tools: with
                others, another sequence begins.
        """
        renderer = renderer or self._renderer
        given = [normalized(message) for message in messages]
        found = self._longest_known(given, renderer)
        if found is None:
            ids, why = renderer.render_prompt(given), self._why_unknown(given, renderer)
            return Extension(given, ids, len(ids), 0, renderer=renderer, breaks=why)
        line, end = found
        if not end.is_turn:
            why = Start.REPEATED_REQUEST
            return Extension(given, [], end.num_tokens, 0, end.num_tokens, line, end, renderer, why)
        rest = given[end.num_messages :]
        breaks = None
        if end.num_tokens < len(line.sequence):
            is_edited = any(message["role"] == "assistant" for message in rest)
            breaks = Start.EDITED_HISTORY if is_edited else Start.SECOND_CONTINUATION
        suffix = renderer.render_continuation(rest, closed=self._is_closed(line.sequence, end.num_tokens))
        if not renderer.rewrites(rest):
            kept = end.num_tokens
            return Extension(given, suffix, kept + len(suffix), len(suffix), kept, line, end, renderer, breaks)
        known = _ids(line.sequence, 0, end.num_tokens)
        context = renderer.render_prompt(self._as_said(line, end.num_messages) + rest)
        if context[: len(known)] != known:
            why = breaks or Start.TEMPLATE_REWRITES
            return Extension(given, context, len(context), len(suffix), 0, line, end, renderer, why)
        added = context[len(known) :]
        return Extension(given, added, len(context), len(added), len(known), line, end, renderer, breaks)

    def plan_tokens(self, token_ids: Sequence[int]) -> Extension:
        """What a prompt of token ids adds: it goes on from the longest known beginning that ends in a sampled turn.

        Args:
            token_ids: The next turn's whole context.
        """
        ids = list(token_ids)
        prompt = _prompt(self._renderer.decode(ids))
        best: tuple[tuple[int, bool], _Line, _End] | None = None
        for line in self._lines:
            num_same = _num_same_ids(_ids(line.sequence, 0, len(ids)), ids)
            for end in line.ends:
                rank = (end.num_tokens, end == line.ends[-1])
                is_usable = end.num_tokens <= num_same and (end.is_turn or end.num_tokens == len(ids))
                if is_usable and (best is None or rank > best[0]):
                    best = rank, line, end
        if best is None:
            return self._alone(prompt, ids)
        _, line, end = best
        return _behind(line, end, ids[end.num_tokens :], prompt)

    def plan_text(self, text: str) -> Extension:
        """What a prompt of text adds: it is encoded behind the longest beginning that was said before, or as a whole.

        What was said is a prompt and the text that was told of the turn behind it. A token that ended this turn, or a
        stop string, is kept only where the text repeats it.

        Args:
            text: The next turn's whole context. Special tokens that it spells become tokens.
        """
        text = text.replace(BREAK, "\ufffd")
        best: tuple[int, _Line, _End, str] | None = None
        for line in self._lines:
            for place, said in line.said.items():
                before = line.messages[place - 1].get("text")
                if before is None or said.sequence is not line.sequence:
                    continue  # a chat's turn, or one that another line has too
                if not text.startswith(before + line.messages[place]["content"]):
                    continue
                end = next(end for end in line.ends if end.is_turn and end.num_messages == place + 1)
                kept, known = self._told(said.start, _ids(line.sequence, said.start, end.num_tokens), before, text)
                if best is None or (kept, kept == len(line.sequence)) > (best[0], best[0] == len(best[1].sequence)):
                    best = kept, line, _End(place + 1, kept, is_turn=True), known
        if best is None:
            whole = self._renderer.tokenizer.backend_tokenizer.encode(text)  # with what it begins texts with
            return self._alone(_prompt(text), whole.ids)
        _, line, end, known = best
        rest = self._renderer.encoder.encode(text[len(known) :], behind=True)
        return _behind(line, end, rest, _prompt(text))

    def _alone(self, prompt: Message, ids: list[int]) -> Extension:
        """A prompt that goes on from nothing."""
        why = Start.NEW_CONVERSATION if self._lines else Start.FIRST
        return Extension([prompt], ids, len(ids), 0, renderer=self._renderer, breaks=why)

    def _told(self, start: int, turn: list[int], before: str, text: str) -> tuple[int, str]:
        """How many tokens of a line a text repeats, with those of a turn, and what they say."""
        for num in range(len(turn), 0, -1):
            known = before + self._renderer.decode(turn[:num])
            if text.startswith(known):
                return start + num, known
        return start, before

    def apply(self, extension: Extension) -> tuple[TokenSequence, list[int]]:
        """Add what `plan` made, before anything else is added to the ledger."""
        messages, line, end, ids = extension.messages, extension.line, extension.end, extension.token_ids
        renderer, why = extension.renderer or self._renderer, extension.breaks
        if line is None or end is None:
            assert why is not None, "an unknown conversation begins a sequence"
            line = self._begin(_Line(TokenSequence(ids), messages, {}, [], renderer, why))
        elif why is None:
            line.messages += messages[end.num_messages :]
            line.sequence.append_context(ids)
        else:
            messages = line.messages[: end.num_messages] + messages[end.num_messages :]
            said = {place: turn for place, turn in line.said.items() if place < end.num_messages}
            ends = [e for e in line.ends if e.is_turn and e.num_messages <= end.num_messages]
            ends = [e for e in ends if e.num_tokens <= extension.kept]
            ids = _ids(line.sequence, 0, extension.kept) + ids
            sequence = TokenSequence(ids, results_length=extension.num_added)
            parent = line.sequence if extension.kept else None
            line = self._begin(_Line(sequence, messages, said, ends, renderer, why, parent, extension.kept))
        line.ends.append(_End(len(line.messages), len(line.sequence.token_ids), is_turn=False))
        return line.sequence, ids

    def record(self, sequence: TokenSequence, reply: Message) -> None:
        """Note that a turn is complete.

        Args:
            sequence: As `extend` gave it, with the sampled tokens appended.
            reply: The turn as the caller was told it. It is recognized by this form, and by its text as sampled.
        """
        line = next(line for line in self._lines if line.sequence is sequence)
        start, end = line.ends[-1].num_tokens, len(sequence.token_ids)
        is_closed = end > start and self._is_closed(sequence, end)
        line.said[len(line.messages)] = _Said(sequence, start, end - is_closed)
        line.messages.append(normalized(reply))
        line.ends.append(_End(len(line.messages), end, is_turn=True))

    def _begin(self, line: _Line) -> _Line:
        self._lines.append(line)
        return line

    def _why_unknown(self, given: list[Message], renderer: Renderer) -> Start:
        """Why a list of messages begins a sequence of which the ledger knows no turn."""
        if not self._lines:
            return Start.FIRST
        of_others = [line for line in self._lines if line.renderer is not renderer]
        if any(end.num_messages <= self._num_same(line, given) for line in of_others for end in line.ends):
            return Start.OTHER_TOOLS
        num_same = max(self._num_same(line, given) for line in self._lines)
        is_known = any(message["role"] == "user" for message in given[:num_same])
        return Start.EDITED_HISTORY if is_known else Start.NEW_CONVERSATION

    def _longest_known(self, given: list[Message], renderer: Renderer) -> tuple[_Line, _End] | None:
        """The longest prefix of some messages that ends in a sampled turn, or all of them where they are known.

        Among equally long ones it prefers one that nothing follows yet.
        """
        best: tuple[_Line, _End] | None = None
        best_rank = (0, False)
        for line in (line for line in self._lines if line.renderer is renderer):
            num_same = self._num_same(line, given)
            for end in line.ends:
                is_usable = end.num_messages <= num_same and (end.is_turn or end.num_messages == len(given))
                rank = (end.num_messages, end.num_tokens == len(line.sequence.token_ids))
                if is_usable and rank > best_rank:
                    best, best_rank = (line, end), rank
        return best

    def _num_same(self, line: _Line, given: list[Message]) -> int:
        """How many of the messages, from the first, a line has too."""
        places = range(min(len(line.messages), len(given)))
        return next((place for place in places if not self._is_same(line, place, given[place])), len(places))

    def _is_same(self, line: _Line, place: int, message: Message) -> bool:
        own = line.messages[place]
        if message == own:
            return True
        if place not in line.said or message["role"] != "assistant":
            return False
        if is_echo(message, own):
            return True
        said = line.said[place]
        text = self._renderer.decode(_ids(said.sequence, said.start, said.end))
        return is_echo(message, {"role": "assistant", "content": text})

    def _as_said(self, line: _Line, num_messages: int) -> list[Message]:
        """A line's first messages, the sampled turns as the model said them."""
        messages = list(line.messages[:num_messages])
        for place, said in line.said.items():
            if place < num_messages:
                ids = _ids(said.sequence, said.start, said.end)
                messages[place] = {"role": "assistant", "content": self._renderer.said_text(ids)}
        return messages

    def _is_closed(self, sequence: TokenSequence, end: int) -> bool:
        """The last token before `end` ends a turn as the template would."""
        return _ids(sequence, end - 1, end) == self._renderer.close_turn_ids[-1:]


def _prompt(text: str) -> Message:
    """What stands among a line's messages for a prompt that is none: a text or token ids. No message is equal to it."""
    return {"role": "prompt", "text": text}


def _behind(line: _Line, end: _End, ids: list[int], prompt: Message) -> Extension:
    """A prompt that goes on from a line with some token ids."""
    messages = line.messages[: end.num_messages] + ([prompt] if end.is_turn else [])
    kept, breaks = end.num_tokens, None
    if not end.is_turn:
        breaks = Start.REPEATED_REQUEST
    elif kept < len(line.sequence):
        breaks = Start.SECOND_CONTINUATION
    return Extension(messages, ids, kept + len(ids), len(ids), kept, line, end, line.renderer, breaks)


def _num_same_ids(own: list[int], given: list[int]) -> int:
    """How many ids, from the first, are the same."""
    return next(
        (place for place, (a, b) in enumerate(zip(own, given, strict=False)) if a != b), min(len(own), len(given))
    )


def _ids(sequence: TokenSequence, start: int, end: int) -> list[int]:
    ids: list[int] = sequence.token_ids[start:end].tolist()
    return ids
