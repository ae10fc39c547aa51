"""Token lists written by hand: <user>=1 <end>=2 <assistant>=3 <tool>=4, see tests/fakes.py."""

from __future__ import annotations

import asyncio

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.episode import request_seed
from rl.types import FinishReason, Prompt, Sampling, StopReason, ToolCall, ToolResult, ToolStatus, Trajectory
from tests.fakes import BAD_CALL, CALL_1, CALL_2, FakeToolbox, ScriptedEngine, answering, said, word_tokenizer

PROMPT = Prompt("p", [{"role": "user", "content": "what"}], "42", "test")
PROMPT_IDS = [1, 10, 2, 3]
LENGTH, ABORT = FinishReason.LENGTH, FinishReason.ABORT


def make_config(**rl: object) -> Config:
    config = Config()
    config.rl_config.multi_turn_enable = True
    for key, value in ({"max_tool_calls": 4} | rl).items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    return config


async def run(
    engine: ScriptedEngine,
    toolbox: FakeToolbox | None,
    config: Config,
    *,
    max_tokens: int = 100,
    forgetful: bool = False,
) -> Trajectory:
    renderer = Renderer(word_tokenizer(forgetful=forgetful), "empty", [])
    loop = AgentLoop(engine, renderer, toolbox, PARSERS["hermes"], config)
    return await loop.run(PROMPT, 0, Sampling(temperature=1.0, max_tokens=max_tokens))


def check(trajectory: Trajectory, token_ids: list[int], loss_mask: list[int]) -> None:
    (sequence,) = trajectory.sequences
    assert sequence.token_ids.tolist() == token_ids
    assert sequence.loss_mask.tolist() == loss_mask
    assert sequence.logprobs.tolist() == pytest.approx(
        [-i / 100 * m for i, m in zip(token_ids, loss_mask, strict=True)]
    )
    assert sequence.prompt_length == 4


async def test_agent_loop_appends_one_tool_turn_with_mask_0():
    engine = ScriptedEngine([said([13, *CALL_1, 2]), said([14, 15, 2])])
    toolbox = answering("one")
    trajectory = await run(engine, toolbox, make_config())
    check(
        trajectory,
        [*PROMPT_IDS, 13, 16, 18, 17, 2, 4, 21, 2, 3, 14, 15, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1],
    )
    assert trajectory.stop_reason is StopReason.FINISHED
    assert [turn.num_tokens for turn in trajectory.turns] == [5, 3]
    assert toolbox.executed == [ToolCall("add", {"a": 1}, trajectory.turns[0].calls[0].raw)]
    assert (toolbox.opened, toolbox.num_closed) == (["p/0"], 1)
    assert engine.requests[1].token_ids == trajectory.sequences[0].token_ids[:13].tolist()
    assert {request.session_id for request in engine.requests} == {"p/0"}


async def test_agent_loop_closes_a_turn_that_was_not_closed_with_mask_0():
    engine = ScriptedEngine([said([*CALL_1]), said([14, 2])])
    trajectory = await run(engine, answering("one"), make_config())
    check(
        trajectory,
        [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 2, 3, 14, 2],
        [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1],
    )


async def test_agent_loop_resubmits_an_aborted_turn_as_a_new_span():
    engine = ScriptedEngine(
        [said([13], ABORT), said([], ABORT, version=1), said([16, 18, 17, 2], version=2), said([2])]
    )
    trajectory = await run(engine, answering("one"), make_config(), max_tokens=10)
    check(
        trajectory,
        [*PROMPT_IDS, 13, 16, 18, 17, 2, 4, 21, 2, 3, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1],
    )
    assert trajectory.sequences[0].versions[4:].tolist() == [0, 2, 2, 2, 2, -1, -1, -1, -1, 0]
    assert [turn.text for turn in trajectory.turns][1] == "<end>"
    assert trajectory.turns[0].num_tokens == 5
    assert [request.token_ids for request in engine.requests[:3]] == [PROMPT_IDS, [*PROMPT_IDS, 13], [*PROMPT_IDS, 13]]
    assert [request.sampling.max_tokens for request in engine.requests] == [10, 9, 9, 10]
    assert len({request.sampling.seed for request in engine.requests}) == 4


async def test_agent_loop_ends_an_aborted_turn_whose_budget_is_used_up():
    engine = ScriptedEngine([said([13, 13], ABORT)])
    trajectory = await run(engine, answering("one"), make_config(), max_tokens=2)
    check(trajectory, [*PROMPT_IDS, 13, 13], [0, 0, 0, 0, 1, 1])
    assert trajectory.stop_reason is StopReason.LENGTH


async def test_agent_loop_runs_parallel_calls_at_once_and_keeps_their_order():
    both_started = asyncio.Barrier(2)

    async def answer(call: ToolCall) -> ToolResult:
        await both_started.wait()
        if call.arguments["a"] == 1:
            await asyncio.sleep(0)
        return ToolResult("add", {1: "one", 2: "two"}[call.arguments["a"]], ToolStatus.OK)

    engine = ScriptedEngine([said([*CALL_1, *CALL_2, 2]), said([14, 2])])
    trajectory = await run(engine, FakeToolbox(answer), make_config(max_parallel_calls=2, trajectory_timeout=5.0))
    check(
        trajectory,
        [*PROMPT_IDS, 16, 18, 17, 16, 19, 17, 2, 4, 21, 2, 4, 22, 2, 3, 14, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1],
    )


async def test_agent_loop_answers_calls_over_the_limit_with_an_error_that_does_not_count():
    engine = ScriptedEngine([said([*CALL_1, *CALL_2, 2]), said([*CALL_2, 2]), said([14, 2])])
    toolbox = answering("one")
    trajectory = await run(engine, toolbox, make_config(max_parallel_calls=1, max_tool_calls=2))
    assert [call.arguments for call in toolbox.executed] == [{"a": 1}, {"a": 2}]
    first, second, third = trajectory.turns
    assert [result.status for result in first.results] == [ToolStatus.OK, ToolStatus.OVER_LIMIT]
    assert first.results[1].text == (
        "Error: not executed, because at most 1 calls are allowed in one turn and 2 in all."
    )  # 17 words, all unknown but the twelfth
    assert trajectory.sequences[0].token_ids[11:].tolist() == [
        *[4, 21, 2, 4, *[0] * 11, 21, *[0] * 5, 2, 3],
        *[16, 19, 17, 2, 4, 21, 2, 3],
        *[14, 2],
    ]
    assert (len(second.results), len(third.results)) == (1, 0)
    assert trajectory.stop_reason is StopReason.FINISHED


async def test_agent_loop_returns_a_malformed_call_to_the_model():
    engine = ScriptedEngine([said([*BAD_CALL, 2]), said([14, 2])])
    trajectory = await run(engine, answering("one"), make_config())
    check(
        trajectory,
        [*PROMPT_IDS, 16, 20, 17, 2, 4, 22, 2, 3, 14, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1],
    )
    assert trajectory.turns[0].results[0].status is ToolStatus.PARSE_ERROR


async def test_agent_loop_stops_at_a_call_in_the_final_turn():
    engine = ScriptedEngine([said([*CALL_1, 2]), said([*CALL_2, 2])])
    trajectory = await run(engine, answering("one"), make_config(max_tool_calls=1))
    check(
        trajectory,
        [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 2, 3, 16, 19, 17, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1],
    )
    assert trajectory.stop_reason is StopReason.TOOL_LIMIT
    assert [len(turn.results) for turn in trajectory.turns] == [1, 0]


async def test_agent_loop_runs_the_calls_of_a_turn_cut_by_length():
    engine = ScriptedEngine([said([*CALL_1, 13, 13, 13]), said([14, 2])])
    trajectory = await run(engine, answering("one"), make_config(), max_tokens=4)
    check(
        trajectory,
        [*PROMPT_IDS, 16, 18, 17, 13, 2, 4, 21, 2, 3, 14, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1],
    )
    assert trajectory.stop_reason is StopReason.FINISHED


async def test_agent_loop_takes_a_call_cut_by_length_for_no_call():
    engine = ScriptedEngine([said([16, 18, 17, 2])])
    toolbox = answering("one")
    trajectory = await run(engine, toolbox, make_config(), max_tokens=2)
    check(trajectory, [*PROMPT_IDS, 16, 18], [0, 0, 0, 0, 1, 1])
    assert trajectory.stop_reason is StopReason.LENGTH
    assert toolbox.executed == []


async def test_agent_loop_runs_a_call_without_its_closing_tag_where_the_model_ended_the_turn():
    engine, toolbox = ScriptedEngine([said([16, 18, 2]), said([14, 15, 2])]), answering("one")
    trajectory = await run(engine, toolbox, make_config())
    assert trajectory.stop_reason is StopReason.FINISHED
    assert [call.arguments for call in toolbox.executed] == [{"a": 1}]


async def test_agent_loop_forces_a_final_turn_out_of_the_reserve():
    # Response 10, reserve 6: the first turn may have 4; 2 and 3 close it and open the last, which has the 4 left.
    engine = ScriptedEngine([said([13] * 9), said([14, 15, 13, 13, 13])])
    trajectory = await run(engine, answering("one"), make_config(max_total_response_length=10, final_answer_reserve=6))
    check(
        trajectory,
        [*PROMPT_IDS, 13, 13, 13, 13, 2, 3, 14, 15, 13, 13],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1],
    )
    assert [request.sampling.max_tokens for request in engine.requests] == [4, 4]
    assert trajectory.stop_reason is StopReason.LENGTH


async def test_agent_loop_cuts_results_so_that_the_answer_keeps_its_reserve():
    # Response 13, reserve 3, 4 said: 6 left for the tool turn, which takes <tool> <end> <assistant> and 3 words.
    engine = ScriptedEngine([said([*CALL_1, 2]), said([14, 15, 2])])
    config = make_config(max_total_response_length=13, final_answer_reserve=3)
    trajectory = await run(engine, answering("one two three one two three"), config)
    check(
        trajectory,
        [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 30, 23, 2, 3, 14, 15, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    )
    assert trajectory.turns[0].results[0].is_truncated
    assert trajectory.turns[0].results[0].text == "one...(truncated)...three"
    assert [request.sampling.max_tokens for request in engine.requests] == [10, 3]
    assert trajectory.stop_reason is StopReason.FINISHED


async def test_agent_loop_truncates_a_result_to_its_cap():
    engine = ScriptedEngine([said([*CALL_1, 2]), said([2])])
    trajectory = await run(engine, answering("one two three one"), make_config(max_tool_response_length=3))
    assert trajectory.sequences[0].token_ids[8:12].tolist() == [4, 21, 30, 21]


async def test_agent_loop_ends_where_no_token_is_left_behind_a_result():
    engine = ScriptedEngine([said([*CALL_1, 2])])
    trajectory = await run(engine, answering("one"), make_config(max_total_response_length=7))
    check(trajectory, [*PROMPT_IDS, 16, 18, 17, 2], [0, 0, 0, 0, 1, 1, 1, 1])
    assert trajectory.stop_reason is StopReason.LENGTH


async def test_agent_loop_keeps_within_max_model_len():
    config = make_config()
    config.generate_config.max_model_len = 7
    engine = ScriptedEngine([said([13] * 9)])
    trajectory = await run(engine, None, config)
    check(trajectory, [*PROMPT_IDS, 13, 13, 13], [0, 0, 0, 0, 1, 1, 1])
    config.generate_config.max_model_len = 4
    trajectory = await run(ScriptedEngine([]), None, config)
    assert (trajectory.stop_reason, trajectory.turns) == (StopReason.LENGTH, [])


async def test_agent_loop_without_tools_is_one_turn():
    engine = ScriptedEngine([said([*CALL_1, 2])])
    trajectory = await run(engine, None, make_config(final_answer_reserve=5, max_total_response_length=6))
    assert (trajectory.stop_reason, trajectory.turns[0].calls) == (StopReason.FINISHED, [])
    assert engine.requests[0].sampling.max_tokens == 6


@pytest.mark.parametrize(
    ("toolbox", "reason"),
    [
        (answering("one", stop=True), StopReason.TOOL_STOP),
        (answering("one", ToolStatus.UNAVAILABLE), StopReason.TOOL_UNAVAILABLE),
    ],
)
async def test_agent_loop_ends_where_a_tool_says_so(toolbox: FakeToolbox, reason: StopReason):
    trajectory = await run(ScriptedEngine([said([*CALL_1, 2])]), toolbox, make_config())
    check(trajectory, [*PROMPT_IDS, 16, 18, 17, 2], [0, 0, 0, 0, 1, 1, 1, 1])
    assert (trajectory.stop_reason, toolbox.num_closed) == (reason, 1)
    assert trajectory.turns[0].results[0].text == "one"


async def test_agent_loop_ends_at_its_deadline_and_releases_the_tools():
    toolbox = answering("one")
    engine = ScriptedEngine([said([*CALL_1, 2])], hangs=True)
    trajectory = await run(engine, toolbox, make_config(trajectory_timeout=0.05))
    assert (trajectory.stop_reason, toolbox.num_closed) == (StopReason.DEADLINE, 1)
    assert len(trajectory.sequences[0].token_ids) == 12


async def test_agent_loop_ends_with_a_dead_engine():
    toolbox = answering("one")
    trajectory = await run(ScriptedEngine([]), toolbox, make_config())
    assert (trajectory.stop_reason, toolbox.num_closed) == (StopReason.ENGINE_FAILED, 1)


async def test_agent_loop_lets_a_bug_in_the_engine_through():
    toolbox = answering("one")

    class BrokenEngine(ScriptedEngine):
        async def generate(self, *args, **kwargs):
            raise TimeoutError("not the trajectory's deadline")

    with pytest.raises(TimeoutError, match="not the trajectory"):
        await run(BrokenEngine([]), toolbox, make_config())
    assert toolbox.num_closed == 1


async def test_agent_loop_starts_a_new_sequence_where_the_template_rewrites_history():
    engine = ScriptedEngine([said([14, 13, *CALL_1, 2]), said([14, 2])])
    trajectory = await run(engine, answering("one"), make_config(), forgetful=True)
    first, second = trajectory.sequences
    assert first.token_ids.tolist() == [*PROMPT_IDS, 14, 13, 16, 18, 17, 2]
    assert second.token_ids.tolist() == [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 2, 3, 14, 2]
    assert second.loss_mask.tolist() == [0] * 12 + [1, 1]
    assert engine.requests[1].token_ids == second.token_ids[:12].tolist()


@pytest.mark.parametrize(
    ("limit", "last", "reason"), [(12, [14, 2], StopReason.FINISHED), (11, [14], StopReason.LENGTH)]
)
async def test_agent_loop_counts_a_response_once_where_the_template_rewrites_history(limit, last, reason):
    # 6 sampled, 4 of the result's turn (<tool> one <end> <assistant>), 2 sampled: 12.
    engine = ScriptedEngine([said([14, 13, *CALL_1, 2]), said([14, 2])])
    config = make_config(max_total_response_length=limit)
    trajectory = await run(engine, answering("one"), config, forgetful=True)
    first, second = trajectory.sequences
    assert second.token_ids.tolist() == [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 2, 3, *last]
    assert (first.response_length, second.response_length) == (6, 4 + len(last))
    assert (trajectory.response_length, trajectory.stop_reason) == (limit, reason)


async def test_agent_loop_keeps_a_sampled_special_token_where_the_template_rewrites_history():
    engine = ScriptedEngine([said([13, *CALL_1, 4, 2]), said([14, 2])])
    trajectory = await run(engine, answering("one"), make_config(), forgetful=True)
    assert trajectory.sequences[1].token_ids[:13].tolist() == [*PROMPT_IDS, 16, 18, 17, 4, 2, 4, 21, 2, 3]


async def test_agent_loop_replaces_what_is_no_text_in_a_result():
    engine = ScriptedEngine([said([*CALL_1, 2]), said([2])])
    trajectory = await run(engine, answering("one \ud800"), make_config())
    assert trajectory.turns[0].results[0].text == "one ?"


def test_request_seed_depends_on_each_part_and_on_nothing_else():
    assert request_seed(1234, "p", 0, 0, 0) == request_seed(1234, "p", 0, 0, 0) == 2163926561
    parts = [(1, "p", 0, 0, 0), (2, "p", 0, 0, 0), (1, "q", 0, 0, 0), (1, "p", 1, 0, 0), (1, "p", 0, 1, 0)]
    seeds = {request_seed(*part) for part in [*parts, (1, "p", 0, 0, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**32 for seed in seeds)
