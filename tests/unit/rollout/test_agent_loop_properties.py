"""Whatever the engine, the tools and the limits do, a trajectory holds what was sampled and what was appended."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.types import FinishReason, Generation, Prompt, Sampling, StopReason
from tests.fakes import BAD_CALL, CALL_1, CALL_2, ScriptedEngine, answering, said, word_tokenizer

RENDERERS = [Renderer(word_tokenizer(forgetful=forgetful), "empty", []) for forgetful in (False, True)]
PROMPT = Prompt("p", [{"role": "user", "content": "what"}], "42", "test")

phrases = st.lists(st.sampled_from([[13], [14, 15], CALL_1, CALL_2, BAD_CALL, [16, 18]]), max_size=4)
finishes = st.sampled_from([FinishReason.STOP, FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT])


@st.composite
def generations(draw: st.DrawFn) -> Generation:
    token_ids = [i for phrase in draw(phrases) for i in phrase]
    finish = draw(finishes)
    if finish is FinishReason.STOP:
        token_ids.append(2)
    return said(token_ids, finish, version=draw(st.integers(0, 3)))


@settings(max_examples=150, deadline=None)
@given(
    script=st.lists(generations(), max_size=8),
    words=st.integers(0, 12),
    max_response=st.integers(1, 40),
    reserve=st.integers(0, 10),
    max_calls=st.integers(0, 4),
    max_parallel=st.integers(1, 3),
    max_tokens=st.integers(1, 12),
    renderer=st.sampled_from(RENDERERS),
)
def test_agent_loop_keeps_what_was_sampled_and_its_limits(
    script, words, max_response, reserve, max_calls, max_parallel, max_tokens, renderer
):
    config = Config()
    rl = config.rl_config
    rl.multi_turn_enable = True
    rl.max_total_response_length, rl.final_answer_reserve = max_response, reserve
    rl.max_tool_calls, rl.max_parallel_calls, rl.max_tool_response_length = max_calls, max_parallel, 6
    engine, toolbox = ScriptedEngine(script), answering(" ".join(["one"] * words))
    loop = AgentLoop(engine, renderer, toolbox, PARSERS["hermes"], config)
    trajectory = asyncio.run(loop.run(PROMPT, 0, Sampling(temperature=1.0, max_tokens=max_tokens)))

    sequences = trajectory.sequences
    assert len(sequences) == 1 or renderer.rewrites_history
    sampled = [i for s in sequences for i, m in zip(s.token_ids, s.loss_mask, strict=True) if m]
    answered = [g.token_ids[: r.sampling.max_tokens] for g, r in zip(script, engine.requests, strict=False)]
    has_died = trajectory.stop_reason is StopReason.ENGINE_FAILED
    assert [turn.is_trained for turn in trajectory.turns][::-1] == [not has_died, *[True] * 99][: len(trajectory.turns)]
    num_given_up = trajectory.turns[-1].num_tokens if has_died else 0  # of the turn that nobody got
    everything = [i for ids in answered for i in ids]
    assert sampled == everything[: len(everything) - num_given_up]
    for request, ids in zip(engine.requests, answered, strict=False):
        asked = request.token_ids + ids
        assert any(s.token_ids[: len(asked)].tolist() == asked for s in sequences)
    assert all(len(s.loss_mask) == len(s.logprobs) == len(s.token_ids) for s in sequences)
    assert trajectory.response_length <= max_response
    assert sum(turn.num_tokens for turn in trajectory.turns) == len(everything)
    assert all(turn.num_tokens <= max_tokens for turn in trajectory.turns)
    assert len(toolbox.executed) <= max_calls
    assert all(len(turn.results) in (0, len(turn.calls)) for turn in trajectory.turns)
    assert has_died == (len(engine.requests) > len(script))
    assert toolbox.num_closed == 1
