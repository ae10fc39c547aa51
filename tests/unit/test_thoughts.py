"""One reader of thoughts: what it takes for a thought, and that parsers, rewards and the viewer use it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rl.chat.parsers import PARSERS
from rl.observability.trajectories import turn_record
from rl.observability.viewer import print_generation
from rl.rewards import rules, search
from rl.rewards.answers import answer_text
from rl.thoughts import is_thinking, said, thought_spans, turn_thoughts, without_thoughts
from rl.types import Prompt, StopReason, ToolCall, Trajectory, Turn


def make(text: str, truth: str, *, begins_in_thought: bool = False) -> Trajectory:
    turn = Turn(text, 5, begins_in_thought=begins_in_thought)
    return Trajectory(Prompt("p-1", [], truth, "test"), 0, [], [turn], StopReason.FINISHED)


@pytest.mark.parametrize(
    ("text", "is_open", "spans"),
    [
        ("said", False, []),
        ("<think>a</think>b", False, [(0, 16)]),
        ("b<think>a", False, [(1, 9)]),
        ("a</think>b", True, [(0, 9)]),
        ("a</think>b", False, [(0, 9)]),  # opened by a header that the reader was not told of
        ("only thought", True, [(0, 12)]),
        ("<think>a<think>b</think>c", False, [(0, 24)]),
        ("a</think>b<think>c</think>d<think>e", True, [(0, 9), (10, 26), (27, 35)]),
        ("<think>a</think>b</think>c", False, [(0, 25)]),
        ("", True, [(0, 0)]),
    ],
)
def test_thought_spans(text: str, is_open: bool, spans: list[tuple[int, int]]) -> None:
    assert thought_spans(text, is_open=is_open) == spans


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), ("<think>", True), ("<think>a</think>", False), ("</think><think>b", True), ("a</think>", False)],
)
def test_is_thinking_looks_at_the_end(text: str, expected: bool) -> None:
    assert is_thinking(text) is expected
    assert is_thinking("opened" + text, is_open=True) is ("</think>" not in text or expected)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "a", "<tool_call>", " "]), max_size=12).map("".join), st.booleans()
)
def test_all_readers_agree(text: str, is_open: bool) -> None:
    spans = thought_spans(text, is_open=is_open)
    assert is_thinking(text, is_open=is_open) == bool(spans and not text[: spans[-1][1]].endswith("</think>"))
    assert without_thoughts(text, is_open=is_open) == said(Turn(text, 1, begins_in_thought=is_open))
    assert "</think>" not in without_thoughts(text, is_open=is_open)


def test_turn_leaves_tags_inside_a_call_to_the_call() -> None:
    call = ToolCall("run", {"code": "print('<think>')"})
    text = f"{PARSERS['hermes'].render(call)}\nIt is \\boxed{{4}}."
    turn = Turn(text, 5, PARSERS["hermes"].parse(text))
    assert turn.calls[0].arguments == call.arguments
    assert turn_thoughts(turn) == []
    assert said(turn) == text


GUESSES = {
    rules.base_acc: r"\boxed{4}",
    rules.math_acc: r"\boxed{4}",
    rules.gsm8k_boxed: r"\boxed{4}",
    rules.format_reward: r"\boxed{4}",
    rules.retool_reward: r"\boxed{4}",
    search.search_em: "<answer>4</answer>",
    search.search_f1: "<answer>4</answer>",
}


@pytest.mark.parametrize("reward", GUESSES, ids=lambda reward: reward.__name__)
def test_rewards_pay_no_guess_in_a_thought(reward) -> None:  # type: ignore[no-untyped-def]
    guess = GUESSES[reward]

    def score(text: str, *, begins_in_thought: bool = False) -> float:
        value = reward(make(text, "4", begins_in_thought=begins_in_thought))
        return value["score"] if isinstance(value, dict) else value

    wrong = -1.0 if reward is rules.retool_reward else 0.0
    assert score(f"<think>Perhaps {guess}? Let me check") == wrong
    assert score(f"Perhaps {guess}? Let me check", begins_in_thought=True) == wrong
    assert score(f"Perhaps {guess}?</think>No.", begins_in_thought=True) == wrong
    assert score(f"Perhaps {guess}?</think>It is {guess}", begins_in_thought=True) == 1.0
    assert score(f"<think>Five?</think>It is {guess}") == 1.0
    assert score(f"It is {guess} <think>or five?") == 1.0


def test_answer_text_leaves_out_special_tokens_of_every_family() -> None:
    for end in ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"):
        assert answer_text(make(f"<think>a</think>\n42{end}", "")) == "42"


def test_viewer_dims_the_thoughts_that_the_record_names() -> None:
    record = turn_record(Turn("maybe</think>yes<think>or", 5, begins_in_thought=True))
    assert record["thoughts"] == [(0, 13), (16, 25)]
    stream = io.StringIO()
    print_generation(Console(file=stream, force_terminal=True, color_system="standard", width=80), record, 1)
    shown = stream.getvalue()
    assert "\x1b[2;3;32mmaybe</think>\x1b[0m\x1b[32myes\x1b[0m\x1b[2;3;32m<think>or" in shown
