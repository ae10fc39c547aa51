"""Formats whose results stand in the model's own turn, and stop strings over the spans that publishes cut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer, load_tokenizer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.types import (
    FinishReason,
    Generation,
    Prompt,
    Sampling,
    StopReason,
    ToolCall,
    ToolResult,
    ToolStatus,
    Trajectory,
)
from tests.fakes import FakeToolbox
from tests.tiny import make_tiny_tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {"query_list": {"type": "array", "items": {"type": "string"}}},
            "required": ["query_list"],
        },
    },
}
PROMPT = Prompt("p", [{"role": "user", "content": "Who?"}], "42", "test")
SAID = ["I ask.\n<search> a </search>", "<think>I saw it. <search> b </search> no.</think>\n<answer> c </answer>"]
INFORMATION = "\n\n<information>found &lt;a&gt;<|im_end|></information>\n\n"


@dataclass
class StoppingEngine:
    """Samples given ids over all requests; sees stop strings, as vLLM does, only in what a request itself samples.

    After each count in `aborts` of tokens sampled in all, a publish interrupts it once.
    """

    renderer: Renderer
    ids: list[int]
    aborts: set[int] = field(default_factory=set)
    sampled: int = 0
    requests: list[list[int]] = field(default_factory=list)

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        self.requests.append(token_ids)
        start, finish = self.sampled, FinishReason.LENGTH
        while self.sampled - start < sampling.max_tokens:
            if self.sampled in self.aborts:
                self.aborts.remove(self.sampled)
                finish = FinishReason.ABORT
                break
            self.sampled += 1
            text = self.renderer.decode(self.ids[start : self.sampled])
            ended = self.ids[self.sampled - 1] in self.renderer.end_of_turn_ids
            if ended or any(stop in text for stop in sampling.stop):
                finish = FinishReason.STOP
                break
        ids = self.ids[start : self.sampled]
        return Generation(ids, [-0.5] * len(ids), finish, len(self.requests))


async def answer(call: ToolCall) -> ToolResult:
    return ToolResult("search", "found &lt;a&gt;<|im_end|>", ToolStatus.OK)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return Renderer(tokenizer, "qwen", [TOOL], PARSERS["search_r1"].for_tools([TOOL]))


def run(
    renderer: Renderer,
    said: list[str],
    aborts: set[int],
    *,
    parser: str = "search_r1",
    max_tokens: int = 500,
    **limits: int,
) -> tuple[Trajectory, StoppingEngine]:
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 3
    for key, value in limits.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    ids = [i for text in said for i in renderer.tokenizer.encode(text)]
    engine = StoppingEngine(renderer, ids, set(aborts))
    loop = AgentLoop(engine, renderer, FakeToolbox(answer), PARSERS[parser].for_tools([TOOL]), config)
    return asyncio.run(loop.run(PROMPT, 0, Sampling(1.0, max_tokens))), engine


def test_agent_loop_puts_results_into_the_models_own_turn(renderer: Renderer):
    trajectory, engine = run(renderer, SAID, set())
    (sequence,) = trajectory.sequences
    text = renderer.decode(sequence.token_ids[sequence.prompt_length :].tolist())
    assert text == SAID[0] + INFORMATION + SAID[1]
    sampled = [i for i, m in zip(sequence.token_ids, sequence.loss_mask, strict=True) if m]
    assert sampled == engine.ids
    assert [turn.text for turn in trajectory.turns] == SAID
    assert [[c.arguments for c in turn.calls] for turn in trajectory.turns] == [[{"query_list": ["a"]}], []]
    assert trajectory.stop_reason is StopReason.FINISHED
    assert (
        2 not in sequence.token_ids[sequence.prompt_length :].tolist()
    )  # the end of turn that the tool printed is text
    assert "</search> and it will return" in renderer.decode(sequence.token_ids[: sequence.prompt_length].tolist())


def test_agent_loop_opens_a_turn_for_the_result_of_one_that_ended(renderer: Renderer):
    trajectory, _ = run(renderer, ["<search> never closed<|im_end|>", "<answer> c </answer>"], set())
    (sequence,) = trajectory.sequences
    text = renderer.decode(sequence.token_ids[sequence.prompt_length :].tolist())
    assert text.startswith("<search> never closed<|im_end|>\n<|im_start|>assistant\n\n\n<information>")
    assert trajectory.turns[0].calls[0].error is not None


def test_agent_loop_goes_on_where_a_stop_string_is_a_thought(renderer: Renderer):
    trajectory, engine = run(renderer, ["<think>a </search>b </answer>c</think><answer>d</answer>"], set())
    assert [turn.text for turn in trajectory.turns] == ["<think>a </search>b </answer>c</think><answer>d</answer>"]
    assert len(engine.requests) == 3
    assert trajectory.stop_reason is StopReason.FINISHED


def test_agent_loop_sees_a_stop_string_that_an_abort_cut(renderer: Renderer):
    whole = renderer.tokenizer.encode(SAID[0])
    lengths = [n for n in range(len(whole)) if renderer.decode(whole[:n]).endswith(("<", "</", "</sear"))]
    assert lengths, "the stop string has several tokens"
    for length in lengths:
        trajectory, engine = run(renderer, SAID, {length})
        assert trajectory.turns[0].text == SAID[0]
        assert engine.requests[1] == trajectory.sequences[0].token_ids[: len(engine.requests[1])].tolist()


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 120), max_size=12), st.integers(1, 60) | st.just(500))
def test_agent_loop_does_not_depend_on_where_publishes_cut_turns(renderer: Renderer, aborts: set[int], max_tokens: int):
    expected, _ = run(renderer, SAID, set(), max_tokens=max_tokens)
    trajectory, _ = run(renderer, SAID, aborts, max_tokens=max_tokens)
    assert trajectory.sequences[0].token_ids.tolist() == expected.sequences[0].token_ids.tolist()
    assert trajectory.sequences[0].loss_mask.tolist() == expected.sequences[0].loss_mask.tolist()
    assert [turn.text for turn in trajectory.turns] == [turn.text for turn in expected.turns]
    assert [turn.calls for turn in trajectory.turns] == [turn.calls for turn in expected.turns]
    assert trajectory.stop_reason is expected.stop_reason


@settings(max_examples=100, deadline=None)
@given(
    said=st.lists(st.sampled_from([*SAID, "<search> never closed<|im_end|>", "plain<|im_end|>"]), max_size=5),
    max_response=st.integers(1, 150),
    reserve=st.integers(0, 30),
)
def test_agent_loop_keeps_its_limits_with_results_in_the_turn(
    renderer: Renderer, said: list[str], max_response: int, reserve: int
):
    filler = ["x" * 200]  # what an engine says on and on
    limits = {"max_total_response_length": max_response, "final_answer_reserve": reserve, "max_tool_response_length": 9}
    trajectory, engine = run(renderer, said + filler, set(), **limits)
    (sequence,) = trajectory.sequences
    sampled = [i for i, m in zip(sequence.token_ids, sequence.loss_mask, strict=True) if m]
    assert sampled == engine.ids[: engine.sampled]
    assert sequence.response_length <= max_response
    assert all(sequence.token_ids[: len(request)].tolist() == request for request in engine.requests)


def test_agent_loop_takes_a_call_in_a_thought_that_the_header_opened_for_a_thought(tmp_path: Path):
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}",
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}",
    )
    renderer = Renderer(tokenizer, "empty", [TOOL], PARSERS["hermes"])
    call = PARSERS["hermes"].render(ToolCall("search", {"query_list": ["a"]})) or ""
    trajectory, _ = run(renderer, [f"never closed {call}<|im_end|>", "x<|im_end|>"], set(), parser="hermes")
    (refused,) = trajectory.turns[0].calls
    assert (refused.is_in_thought, trajectory.turns[0].begins_in_thought) == (True, True)
    assert len(trajectory.turns) == 2
    trajectory, _ = run(renderer, [f"closed</think>{call}<|im_end|>", "x<|im_end|>"], set(), parser="hermes")
    assert [len(turn.calls) for turn in trajectory.turns] == [1, 0]
    assert trajectory.turns[0].calls[0].error is None
