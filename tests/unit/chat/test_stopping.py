from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.stopping import begins_stop, completes_stop

STOPS = ("</search>", "é!")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), ("a <", True), ("</searc", True), ("</search>", False), ("< ", False), ("é", True), ("\ufffd", True)],
)
def test_begins_stop_sees_a_part_of_a_stop_string_at_the_end(text: str, expected: bool):
    assert begins_stop(text, STOPS) is expected
    assert not begins_stop(text, ())


def test_completes_stop_looks_at_what_was_sampled_last():
    assert completes_stop("a</search>", "a</sear", STOPS)
    assert completes_stop("a</search> b", "a</sear", STOPS)
    assert not completes_stop("</search> b", "</search>", STOPS)
    assert not completes_stop("a</search", "a</sear", STOPS)
    assert completes_stop("é!", "\ufffd\ufffd", STOPS)


@settings(max_examples=300, deadline=None)
@given(st.text("</sear>x", max_size=20), st.integers(0, 20))
def test_a_stop_string_across_two_spans_is_begun_and_then_completed(text: str, cut: int):
    stops = ("</search>",)
    text = text + "</search>"
    before = text[:cut]
    first = text.index("</search>") + len("</search>")
    if cut < first:
        straddles = cut > first - len("</search>")
        assert not straddles or begins_stop(before, stops)
        assert completes_stop(text[:first], before, stops)
