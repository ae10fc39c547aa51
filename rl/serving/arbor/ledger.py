"""The completions that a client got, and which of them its samples mean.

Arbor's clients send text back that they have parsed and rendered again. What is trained on is the completion itself:
its prompt and its tokens, as they were sampled.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from rl.rollout.rollout_function import Policy, Reply
from rl.serving.arbor.fields import Fields, forms_of
from rl.serving.arbor.wire import Sample, text_of
from rl.serving.sample_request import SampleRequest
from rl.types import Message, StopReason, Trajectory

_MOST_TOKENS = 32_000_000
"""Tokens of all completions that are kept; the oldest make room."""
_MOST_COMPARED = 256
"""Completions whose prompts are compared with a sample's; the newest."""
_K = TypeVar("_K")


class MatchKind(StrEnum):
    """How a sample was recognized."""

    EXACT = "exact"
    """By its messages and its text, but for space around them."""
    TEXT = "text"
    """By its text; the messages differ."""
    FIELDS = "fields"
    """By the values of its fields, in another form."""


class Untrained(StrEnum):
    """Why a completion cannot be trained on."""

    CONSTRAINED = "constrained"
    """It had to be JSON, and the log-probs are of that distribution."""
    OTHER_SAMPLING = "other_sampling"
    """Its temperature, top_p, top_k or min_p is not the training's."""


@dataclass(slots=True, eq=False)
class Completion:
    """One answer of the model outside of any rollout."""

    prompt: tuple[tuple[str, str], ...]
    """Role and text of each message."""
    text: str
    trajectory: Trajectory
    """Its tokens, as sampled."""
    version: int
    """Version of the weights that sampled its last token."""
    forms: list[Fields]
    """What adapters read in the text."""
    untrained: Untrained | None
    sampling: str
    """How it was sampled, for messages."""
    num_prompt_tokens: int
    num_tokens: int
    is_used: bool = False
    """A sample was matched with it."""


@dataclass(slots=True, frozen=True)
class Match:
    """A sample's completion."""

    kind: MatchKind
    completion: Completion


class CompletionLedger:
    """The completions of late, in the order in which they came.

    Args:
        num_versions: Versions of the weights whose completions are kept.
        most_tokens: Tokens of all completions that are kept.
    """

    def __init__(self, num_versions: int = 2, most_tokens: int = _MOST_TOKENS) -> None:
        self._num_versions, self._most_tokens = num_versions, most_tokens
        self._kept: OrderedDict[int, Completion] = OrderedDict()
        self._trained, self._untrained = _Index(), _Index()
        self._num_tokens, self._newest = 0, 0
        self.num_seen = 0
        """Completions so far."""

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, request: SampleRequest, replies: Sequence[Reply], policies: Sequence[Policy]) -> None:
        """Keep the completions of a request; each has an episode of its own."""
        for number, (reply, policy) in enumerate(zip(replies, policies, strict=True)):
            self._add(_completion(request, _prompt(request.conversation(number)), reply, policy, self._newest))

    def match(self, samples: Sequence[Sample]) -> list[Match | None]:
        """Find the completion of each sample, and mark it as used.

        Exact ones are looked for first, for all samples. Among several, those of the newest weights come first,
        then the one with the most similar prompt.
        """
        found: list[Match | None] = [None] * len(samples)
        for kind in MatchKind:
            for place, sample in enumerate(samples):
                if found[place] is None and (completion := self._find(kind, self._trained, sample)) is not None:
                    completion.is_used = True
                    found[place] = Match(kind, completion)
        return found

    def free(self, found: Iterable[Match | Completion | str | None]) -> None:
        """Take back what `match` and `take_untrained` marked; others than matches and completions do not count."""
        for one in found:
            completion = one.completion if isinstance(one, Match) else one
            if isinstance(completion, Completion):
                completion.is_used = False

    def take_untrained(self, sample: Sample) -> Completion | None:
        """Find a completion that a sample means but that cannot be trained on, and mark it as used."""
        for kind in MatchKind:
            if (completion := self._find(kind, self._untrained, sample)) is not None:
                completion.is_used = True
                return completion
        return None

    def clear(self) -> None:
        """Forget all completions; the count of those seen goes on."""
        self._kept.clear()
        self._trained, self._untrained = _Index(), _Index()
        self._num_tokens, self._newest = 0, 0  # the next training's versions begin at 0 again

    def _add(self, completion: Completion) -> None:
        number, self.num_seen = self.num_seen, self.num_seen + 1
        self._kept[number] = completion
        self._num_tokens += _size(completion)
        self._index(completion).add(number, completion)
        self._newest = completion.version  # a new training counts from 0 again
        while self._kept and (self._num_tokens > self._most_tokens or self._is_old(next(iter(self._kept.values())))):
            oldest, dropped = self._kept.popitem(last=False)
            self._num_tokens -= _size(dropped)
            self._index(dropped).remove(oldest)

    def _is_old(self, completion: Completion) -> bool:
        return abs(self._newest - completion.version) >= self._num_versions

    def _index(self, completion: Completion) -> _Index:
        return self._trained if completion.untrained is None else self._untrained

    def _find(self, kind: MatchKind, index: _Index, sample: Sample) -> Completion | None:
        prompt, is_by_fields = _prompt(sample.messages), kind is MatchKind.FIELDS
        numbers = index.with_fields(forms_of(sample.text)) if is_by_fields else index.with_text(sample.text)
        unused = [self._kept[n] for n in sorted(numbers, reverse=True) if not self._kept[n].is_used]
        if kind is MatchKind.EXACT:
            return next((one for one in unused if one.prompt == prompt), None)
        if len(unused) <= 1:
            return unused[0] if unused else None
        words = _words(prompt)
        return max(
            unused[:_MOST_COMPARED],
            key=lambda one: (one.version, one.prompt == prompt, _likeness(words, _words(one.prompt))),
        )


class _Index:
    """Numbers of completions by their text and by the values in it."""

    def __init__(self) -> None:
        self._all: dict[int, Completion] = {}
        self._by_text: dict[str, set[int]] = {}
        self._by_value: dict[tuple[str, str], set[int]] = {}

    def add(self, number: int, completion: Completion) -> None:
        self._all[number] = completion
        self._by_text.setdefault(completion.text.strip(), set()).add(number)
        for value in _values(completion):
            self._by_value.setdefault(value, set()).add(number)

    def remove(self, number: int) -> None:
        completion = self._all.pop(number)
        _remove(self._by_text, completion.text.strip(), number)
        for value in _values(completion):
            _remove(self._by_value, value, number)

    def with_text(self, text: str) -> set[int]:
        return self._by_text.get(text.strip(), set())

    def with_fields(self, forms: Sequence[Fields]) -> set[int]:
        """Those that have all values of a form; a completion may have more."""
        found: set[int] = set()
        for fields in forms:
            wanted = fields.items()
            rarest = min((self._by_value.get(value, set()) for value in wanted), key=len)
            found |= {n for n in rarest if any(wanted <= form.items() for form in self._all[n].forms)}
        return found


def _remove(table: dict[_K, set[int]], key: _K, number: int) -> None:
    table[key].discard(number)
    if not table[key]:
        del table[key]


def _completion(
    request: SampleRequest, prompt: tuple[tuple[str, str], ...], reply: Reply, policy: Policy, newest: int
) -> Completion:
    stop_reason = StopReason.LENGTH if reply.is_cut else StopReason.FINISHED
    trajectory = policy.episode.finish(stop_reason, reply.turn.generate_s)
    untrained = None
    if not reply.turn.is_trained:
        is_constrained = request.sampling(policy.episode.sampling).json_schema is not None
        untrained = Untrained.CONSTRAINED if is_constrained else Untrained.OTHER_SAMPLING
    text = text_of(reply.message)
    named = {key: getattr(request, key) for key in ("temperature", "top_p", "top_k", "min_p")}
    return Completion(
        prompt,
        text,
        trajectory,
        int(trajectory.sequences[-1].versions[-1]) if untrained is None else newest,
        forms_of(text),
        untrained,
        ", ".join(f"{key} {value:g}" for key, value in named.items() if value is not None),
        len(reply.sampled.prompt_ids),
        len(reply.sampled.token_ids),
    )


def _prompt(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((str(message.get("role")), text_of(message).strip()) for message in messages)


def _values(completion: Completion) -> set[tuple[str, str]]:
    return {value for form in completion.forms for value in form.items()}


def _size(completion: Completion) -> int:
    return completion.num_prompt_tokens + completion.num_tokens


def _words(prompt: tuple[tuple[str, str], ...]) -> Counter[str]:
    return Counter(word for _, text in prompt for word in text.split())


def _likeness(one: Counter[str], other: Counter[str]) -> float:
    """Share of the words of two texts that both have, each as often as it occurs."""
    return (one & other).total() / max(1, (one | other).total())
