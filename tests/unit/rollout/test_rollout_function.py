"""Rollout functions of the user's. Token lists written by hand: <user>=1 <end>=2 <assistant>=3 <tool>=4."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.headers import headers_of, rows_of
from rl.rollout.rollout_function import Policy, load_rollout_function
from rl.rollout.user_code import OutOfTokensError
from rl.types import FinishReason, Message, Prompt, Sampling, StopReason, ToolStatus, Trajectory
from tests.fakes import CALL_1, FakeToolbox, ScriptedEngine, answering, said, word_tokenizer

PROMPT = Prompt("p", [{"role": "user", "content": "what"}], "42", "test")
PROMPT_IDS = [1, 10, 2, 3]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


async def refine(prompt: Prompt, policy: Policy, *, rounds: int = 1) -> float:
    messages = list(prompt.messages)
    reply = await policy.chat(messages)
    for _ in range(rounds):
        messages += [{"role": "assistant", "content": reply.text + " "}, user("two")]  # not the message itself
        reply = await policy.chat(messages)
    return float(reply.text == prompt.ground_truth)


async def candidates(prompt: Prompt, policy: Policy) -> dict[str, Any]:
    first, second = await asyncio.gather(policy.chat(prompt.messages), policy.chat(prompt.messages))
    await policy.chat([*prompt.messages, first.message, user("three")])
    return {"score": 1.0, "chosen": second.text, "turn_scores": [0.1, 0.2, 0.3]}


async def with_tools(prompt: Prompt, policy: Policy) -> None:
    messages = list(prompt.messages)
    while True:
        reply = await policy.chat(messages)
        if not reply.calls:
            return
        messages += [reply.message, *await policy.run_calls(reply)]


async def endless(prompt: Prompt, policy: Policy) -> None:
    messages = list(prompt.messages)
    while True:
        reply = await policy.chat(messages)
        messages += [reply.message, user("one")]


async def endless_but_careful(prompt: Prompt, policy: Policy) -> float:
    try:
        await endless(prompt, policy)
    except OutOfTokensError:
        return 0.25
    raise AssertionError


async def careless(prompt: Prompt, policy: Policy) -> float:
    try:
        await policy.chat(prompt.messages)
    except Exception:
        return 1.0
    return 0.0


async def raising(prompt: Prompt, policy: Policy) -> float:
    await policy.chat(prompt.messages)
    raise KeyError("no such room")


async def returning_text(prompt: Prompt, policy: Policy) -> str:
    return "good"


async def malformed(prompt: Prompt, policy: Policy) -> None:
    await policy.chat([{"content": "what"}])


def not_async(prompt: Prompt, policy: Policy) -> float:
    return 1.0


async def without_policy(prompt: Prompt) -> float:
    return 1.0


class NoFunction:
    pass


def make_config(name: str, **rl: object) -> Config:
    config = Config()
    config.rl_config.multi_turn_enable = True
    config.rl_config.rollout_function = f"{__name__}:{name}"
    for key, value in rl.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    return config


async def run(name: str, script: list[Any], toolbox: FakeToolbox | None = None, **rl: object) -> Trajectory:
    renderer = Renderer(word_tokenizer(), "empty", [])
    loop = AgentLoop(ScriptedEngine(script), renderer, toolbox, PARSERS["hermes"], make_config(name, **rl))
    return await loop.run(PROMPT, 0, Sampling(temperature=1.0, max_tokens=100))


async def test_a_rollout_function_leads_one_conversation_on_one_sequence():
    trajectory = await run(
        "refine", [said([13, 2]), said([14, 2]), said([15, 2])], rollout_function_kwargs={"rounds": 2}
    )
    (sequence,) = trajectory.sequences
    assert list(sequence.token_ids) == [*PROMPT_IDS, 13, 2, 1, 22, 2, 3, 14, 2, 1, 22, 2, 3, 15, 2]
    assert list(sequence.loss_mask) == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert (trajectory.stop_reason, trajectory.environment) == (StopReason.FINISHED, {"score": 1.0})
    assert [turn.text for turn in trajectory.turns] == ["think <end>", "answer <end>", "42 <end>"]


async def test_a_rollout_function_may_sample_candidates_and_go_on_from_one():
    trajectory = await run("candidates", [said([13, 2]), said([14, 2]), said([15, 2])])
    # The second candidate's sequence comes first, so that the last turn that was sampled is the last.
    first, second = trajectory.sequences
    assert list(first.token_ids) == [*PROMPT_IDS, 14, 2]
    assert list(second.token_ids) == [*PROMPT_IDS, 13, 2, 1, 23, 2, 3, 15, 2]
    assert [turn.text for turn in trajectory.turns] == ["answer <end>", "think <end>", "42 <end>"]
    assert trajectory.environment == {"score": 1.0, "chosen": "answer", "turn_scores": [0.2, 0.1, 0.3]}
    assert trajectory.response_length == 2 + 2 + 4 + 2


async def test_a_rollout_function_runs_tools_within_their_limits():
    toolbox = answering("one two three one two three")
    script = [said([*CALL_1, 2]), said([*CALL_1, 2]), said([15, 2])]
    trajectory = await run("with_tools", script, toolbox, max_tool_calls=1, max_tool_response_length=3)
    (sequence,) = trajectory.sequences
    assert list(sequence.token_ids)[:12] == [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 30, 23]
    assert [turn.results[0].status for turn in trajectory.turns[:2]] == [ToolStatus.OK, ToolStatus.OVER_LIMIT]
    assert (trajectory.stop_reason, trajectory.environment, toolbox.num_closed) == (StopReason.FINISHED, None, 1)


async def test_an_unavailable_service_is_told_whatever_the_function_does():
    script = [said([*CALL_1, 2]), said([15, 2])]
    trajectory = await run("with_tools", script, answering("down", ToolStatus.UNAVAILABLE))
    assert trajectory.stop_reason is StopReason.TOOL_UNAVAILABLE


async def test_a_rollout_function_ends_where_the_budget_does():
    # 2 sampled, 3 and the header between, and so on: the third turn has 1 token of the 13, and no fourth follows.
    trajectory = await run("endless", [said([13, 2])] * 9, max_total_response_length=13)
    assert (trajectory.stop_reason, trajectory.response_length) == (StopReason.LENGTH, 13)
    assert trajectory.environment == {"score": 0.0}
    careful = await run("endless_but_careful", [said([13, 2])] * 9, max_total_response_length=13)
    assert (careful.stop_reason, careful.environment) == (StopReason.LENGTH, {"score": 0.25})
    cut = await run("refine", [said([13], FinishReason.LENGTH)], rollout_function_kwargs={"rounds": 0})
    assert cut.stop_reason is StopReason.LENGTH


async def test_turns_that_run_at_once_share_the_budget():
    cut = said([13] * 9, FinishReason.LENGTH)
    engine = ScriptedEngine([cut, cut, cut])
    config = make_config("candidates", max_total_response_length=10)
    loop = AgentLoop(engine, Renderer(word_tokenizer(), "empty", []), None, PARSERS["hermes"], config)
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 6))
    # 6 and the 4 that are left; nothing for the third turn.
    assert [request.sampling.max_tokens for request in engine.requests] == [6, 4]
    assert (trajectory.stop_reason, trajectory.response_length) == (StopReason.LENGTH, 10)


async def test_a_dead_engine_is_told_though_the_function_caught_it():
    trajectory = await run("careless", [])
    assert (trajectory.stop_reason, trajectory.environment) == (StopReason.ENGINE_FAILED, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", "rollout: KeyError: 'no such room'"),
        ("returning_text", "returned 'good' as score, not a finite number"),
        ("malformed", "DataError: messages: each needs a role"),
    ],
)
async def test_what_a_rollout_function_does_wrong_ends_one_trajectory(name: str, reason: str):
    trajectory = await run(name, [said([13, 2])])
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert reason in (trajectory.failure or "")


async def test_a_rollout_function_has_a_deadline():
    renderer = Renderer(word_tokenizer(), "empty", [])
    engine = ScriptedEngine([], hangs=True)
    loop = AgentLoop(engine, renderer, None, PARSERS["hermes"], make_config("careless", trajectory_timeout=0.05))
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 100))
    assert trajectory.stop_reason is StopReason.DEADLINE


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("without_policy", {}, r"cannot be called as rollout\(prompt, policy, \*\*kwargs\)"),
        ("refine", {"round": 2}, "rollout_function_kwargs: unknown name 'round'. Did you mean 'rounds'"),
        ("NoFunction", {}, "is a class. Write `async def rollout"),
        ("not_async", {}, "must be `async def`"),
        ("refin", {}, "Did you mean 'refine'"),
    ],
)
def test_load_rollout_function_checks_it_before_the_run(name: str, kwargs: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        load_rollout_function(make_config(name, rollout_function_kwargs=kwargs).rl_config)


async def impatient(prompt: Prompt, policy: Policy) -> float:
    messages: list[Message] = list(prompt.messages)
    first = await policy.chat(messages)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await policy.chat([*messages, first.message, user("three")])
    return 1.0


async def test_what_was_sampled_for_a_caller_that_left_is_context():
    cut = said([21, 22], FinishReason.ABORT)  # a publish, then the engine hangs
    engine = ScriptedEngine([said([13, 2]), cut], hangs=True)
    loop = AgentLoop(engine, Renderer(word_tokenizer(), "empty", []), None, PARSERS["hermes"], make_config("impatient"))
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 100))
    assert (trajectory.stop_reason, len(engine.requests)) == (StopReason.FINISHED, 3)
    (sequence,) = trajectory.sequences
    assert sequence.token_ids.tolist()[-2:] == [21, 22]
    assert sequence.token_ids[sequence.loss_mask == 1].tolist() == [13, 2]
    assert (sequence.logprobs[-2:].tolist(), sequence.versions[-2:].tolist()) == ([0.0, 0.0], [-1, -1])
    assert [turn.is_trained for turn in trajectory.turns] == [True, False]
    (header,), _ = headers_of([trajectory.without_tokens()], rows_of([trajectory]))
    assert (header.num_as_sampled, header.num_sampled, header.num_untrained) == (2, 2, 2)
