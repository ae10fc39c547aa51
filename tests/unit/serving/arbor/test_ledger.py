"""Samples find their completions."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl.serving.arbor.fields import forms_of
from rl.serving.arbor.ledger import Completion, CompletionLedger, MatchKind, Untrained
from rl.serving.arbor.wire import Sample
from rl.types import Prompt, StopReason, TokenSequence, Trajectory

PROMPT = Prompt("p", [], "", "test")


def completion(prompt: str, text: str, *, version: int = 0, size: int = 10, **others: Any) -> Completion:
    sequence = TokenSequence([1] * size)
    sequence.append_sampled([2], [-0.5], version)
    trajectory = Trajectory(PROMPT, 0, [sequence], [], StopReason.FINISHED)
    named = {"untrained": None, **others}
    return Completion(
        (("user", prompt),), text, trajectory, version, forms_of(text), sampling="", num_prompt_tokens=size,
        num_tokens=1, **named,
    )  # fmt: skip


def sample(prompt: str, text: str) -> Sample:
    return Sample([{"role": "user", "content": prompt}], {"role": "assistant", "content": text}, 0.0)


def ledger_of(*completions: Completion, **options: int) -> CompletionLedger:
    ledger = CompletionLedger(**options)
    for one in completions:
        ledger._add(one)
    return ledger


def kinds(found: list[Any]) -> list[MatchKind | None]:
    return [match and match.kind for match in found]


def test_an_exact_match_comes_before_one_by_text_and_one_by_fields() -> None:
    first, second, third = (
        completion("one", "<a>1</a>"), completion("two", "<a>1</a>"), completion("one", "[[ ## a ## ]]\n1"),
    )  # fmt: skip
    ledger = ledger_of(first, second, third)
    found = ledger.match([sample("other", "<a>1</a> "), sample("one", "<a>1</a>\n"), sample("one", '{"a": 1}')])
    assert kinds(found) == [MatchKind.TEXT, MatchKind.EXACT, MatchKind.FIELDS]
    assert [match.completion for match in found] == [second, first, third]
    assert ledger.match([sample("one", "<a>1</a>")]) == [None]  # each is used once


def test_the_most_similar_prompt_decides() -> None:
    far, near = completion("claim: the moon is cheese", "<a>1</a>"), completion("claim: the sun is hot", "<a>1</a>")
    (found,) = ledger_of(near, far).match([sample("<claim> the sun is hot </claim>", '{"a": 1}')])
    assert found is not None and found.completion is near


def test_newer_weights_come_before_a_similar_prompt() -> None:
    old, new = completion("q", "<a>1</a>", version=3), completion("other", "<a>1</a>", version=4)
    (found,) = ledger_of(old, new).match([sample("q", '{"a": 1}')])
    assert found is not None and found.completion is new


def test_a_completion_may_have_more_fields_than_the_sample() -> None:
    ledger = ledger_of(completion("q", "[[ ## thought ## ]]\nhm\n[[ ## a ## ]]\n1\n[[ ## completed ## ]]"))
    assert ledger.match([sample("q", "<a>1</a><b>2</b>")]) == [None]
    assert kinds(ledger.match([sample("q", "<a>1</a>")])) == [MatchKind.FIELDS]


def test_freed_matches_can_be_used_again() -> None:
    ledger = ledger_of(completion("q", "text"))
    ledger.free(ledger.match([sample("q", "text")]))
    assert kinds(ledger.match([sample("q", "text")])) == [MatchKind.EXACT]


def test_untrained_completions_are_found_apart() -> None:
    ledger = ledger_of(completion("q", "text", untrained=Untrained.CONSTRAINED))
    assert ledger.match([sample("q", "text")]) == [None]
    found = ledger.take_untrained(sample("q", "text"))
    assert found is not None and found.untrained is Untrained.CONSTRAINED
    assert ledger.take_untrained(sample("q", "text")) is None


def test_old_weights_and_too_many_tokens_are_forgotten() -> None:
    ledger = ledger_of(*(completion("q", f"<a>{v}</a>", version=v) for v in range(5)), num_versions=2)
    assert (len(ledger), ledger.num_seen) == (2, 5)
    assert kinds(ledger.match([sample("q", "<a>2</a>"), sample("q", "<a>3</a>")])) == [None, MatchKind.EXACT]
    ledger._add(completion("q", "<a>0</a>", version=0))  # another training
    assert len(ledger) == 1
    ledger = ledger_of(*(completion("q", f"{n}", size=99) for n in range(50)), most_tokens=1000)
    assert len(ledger) == 10
    ledger.clear()
    assert (len(ledger), ledger.num_seen, ledger.match([sample("q", "49")])) == (0, 50, [None])


def test_the_versions_of_another_training_begin_at_0_again() -> None:
    ledger = ledger_of(*(completion("q", f"<a>{v}</a>", version=v) for v in range(5)))
    ledger.clear()
    ledger._add(completion("q", "again", version=0))
    assert kinds(ledger.match([sample("q", "again")])) == [MatchKind.EXACT]


def test_many_completions_are_searched_in_no_time() -> None:
    texts = [f"<a>{n % 7}</a><b>{n}</b>" for n in range(3000)]
    ledger = ledger_of(*(completion(f"question {n}", text, size=1) for n, text in enumerate(texts)))
    found = ledger.match([sample(f"question {n}", f'{{"a": {n % 7}, "b": {n}}}') for n in range(3000)])
    assert kinds(found) == [MatchKind.FIELDS] * 3000
    assert np.all([match.completion.text == text for match, text in zip(found, texts, strict=True)])
