"""Environments of the user's. Token lists written by hand: <user>=1 <end>=2 <assistant>=3 <tool>=4."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.rewards.registry import load_rewards
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.environment_code import load_environment
from rl.rollout.environments import Step
from rl.rollout.group import run_group
from rl.types import FinishReason, Message, Prompt, Sampling, Scores, StopReason, Trajectory, Turn
from tests import chat_templates
from tests.chat_templates import byte_level
from tests.fakes import CALL_1, FakeToolbox, ScriptedEngine, answering, said, word_tokenizer

PROMPT = Prompt("p", [{"role": "user", "content": "what"}], "42", "test")
PROMPT_IDS = [1, 10, 2, 3]
RENDERER = Renderer(word_tokenizer(), "empty", [])


class Counting:
    """Says one, two, ... and ends after some turns; what it met is in `log`, over all instances."""

    log: ClassVar[list[Any]] = []

    def __init__(self, *, last: int = 3, reward: float | None = 0.5) -> None:
        self.number, self.last, self.reward = 0, last, reward

    async def reset(self, prompt: Prompt) -> list[Message]:
        self.log.append("reset")
        return prompt.messages

    async def step(self, turn: Turn) -> Step:
        self.number += 1
        self.log.append((turn.text, turn.is_cut, turn.is_last))
        if self.number == self.last:
            return Step(reward=1.0 if self.reward is not None else None, done=True)
        return Step([{"role": "user", "content": ["one", "two", "three"][self.number - 1]}], self.reward)

    async def close(self) -> None:
        self.log.append("close")


class Plain(Counting):
    """Answers with plain tuples."""

    async def step(self, turn: Turn) -> Any:
        return tuple(await super().step(turn))[:3]


class Asking(Counting):
    """Begins with another question than the row's."""

    async def reset(self, prompt: Prompt) -> list[Message]:
        return [{"role": "user", "content": "two"}, {"role": "user", "content": "three"}]


class Raising(Counting):
    async def step(self, turn: Turn) -> Step:
        raise KeyError("no such room")


class RaisingAtOnce(Counting):
    def __init__(self) -> None:
        raise ValueError("no world")


class CancellingItself(Counting):
    async def step(self, turn: Turn) -> Step:
        raise asyncio.CancelledError


class Exiting(Counting):
    async def reset(self, prompt: Prompt) -> list[Message]:
        raise SystemExit(3)


class Hanging(Counting):
    async def step(self, turn: Turn) -> Step:
        await asyncio.Event().wait()
        raise AssertionError


class FailingToClose(Counting):
    async def close(self) -> None:
        raise OSError("still open")


class Returning(Counting):
    """Returns what it is told to."""

    def __init__(self, *, step: Any = None, reset: Any = None) -> None:
        self._step, self._reset = step, reset

    async def reset(self, prompt: Prompt) -> Any:
        return prompt.messages if self._reset is None else self._reset

    async def step(self, turn: Turn) -> Any:
        return self._step


class LastTurn(Counting):
    is_last_turn = True


class RaisingLater(Counting):
    @property
    def is_last_turn(self) -> bool:
        raise ValueError("who knows")


class Empty:
    """No environment."""


class NotAsync(Counting):
    def step(self, turn: Turn) -> Any:  # type: ignore[override]
        return Step(done=True)


class WithoutTurn(Counting):
    async def step(self) -> Step:  # type: ignore[override]
        return Step(done=True)


@pytest.fixture(autouse=True)
def clean_log() -> None:
    Counting.log.clear()


def make_config(environment: str, **rl: object) -> Config:
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 4
    config.rl_config.environment = f"{__name__}:{environment}"
    for key, value in rl.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    return config


async def run(
    environment: str, script: list[Any], toolbox: FakeToolbox | None = None, max_tokens: int = 100, **rl: object
) -> Trajectory:
    loop = AgentLoop(ScriptedEngine(script), RENDERER, toolbox, PARSERS["hermes"], make_config(environment, **rl))
    return await loop.run(PROMPT, 0, Sampling(temperature=1.0, max_tokens=max_tokens))


def answers(*ids: int) -> list[Any]:
    return [said([i, 2]) for i in ids]


@pytest.mark.parametrize("name", ["Counting", "Plain"])
async def test_an_environment_answers_every_turn_and_rewards_it(name: str):
    trajectory = await run(name, answers(13, 14, 15))
    (sequence,) = trajectory.sequences
    assert list(sequence.token_ids) == [*PROMPT_IDS, 13, 2, 1, 21, 2, 3, 14, 2, 1, 22, 2, 3, 15, 2]
    assert list(sequence.loss_mask) == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.environment == {"score": 2.0, "turn_scores": [0.5, 0.5, 1.0]}
    assert [[m["content"] for m in turn.messages] for turn in trajectory.turns] == [["one"], ["two"], []]
    texts = [(text, False, False) for text in ("think <end>", "answer <end>", "42 <end>")]
    assert [entry for entry in Counting.log if isinstance(entry, tuple)] == texts
    assert (Counting.log[0], Counting.log[-1]) == ("reset", "close")


async def test_the_reward_named_environment_gives_score_and_turn_rewards():
    trajectory = await run("Counting", answers(13, 14, 15))
    trajectory.take_scores(await load_rewards(["environment"], [2.0]).score(trajectory))
    assert (trajectory.score, trajectory.rewards) == (4.0, {"environment": 2.0})
    assert trajectory.turn_rewards == [1.0, 1.0, 2.0]


async def test_an_environment_without_rewards_gives_no_score():
    trajectory = await run("Counting", answers(13), environment_kwargs={"last": 1, "reward": None})
    assert trajectory.environment is None
    trajectory.take_scores(await load_rewards(["environment"], [1.0]).score(trajectory))
    assert trajectory.score is None
    assert "gave no reward" in (trajectory.reward_error or "")


async def test_an_environment_may_begin_with_messages_of_its_own():
    trajectory = await run("Asking", answers(13), environment_kwargs={"last": 1})
    assert list(trajectory.sequences[0].token_ids) == [1, 22, 2, 1, 23, 2, 3, 13, 2]
    assert [m["content"] for m in trajectory.prompt.messages] == ["two", "three"]
    assert [m["content"] for m in PROMPT.messages] == ["what"]


async def test_each_trajectory_has_an_environment_of_its_own():
    loop = AgentLoop(
        ScriptedEngine(answers(13, 13, 13, 14, 14, 14)), RENDERER, None, PARSERS["hermes"], make_config("Counting")
    )

    async def score(trajectory: Trajectory) -> Scores:
        return Scores(1.0)

    group = await run_group(loop, PROMPT, 2, Sampling(1.0, 100), score)
    assert [t.environment["score"] for t in group.trajectories if t.environment] == [2.0, 2.0]


async def test_turns_with_calls_go_to_the_tools_and_the_others_to_the_environment():
    trajectory = await run(
        "Counting", [said([*CALL_1, 2]), *answers(14, 15)], answering("three"), environment_kwargs={"last": 2}
    )
    (sequence,) = trajectory.sequences
    assert list(sequence.token_ids) == [
        *[*PROMPT_IDS, 16, 18, 17, 2],
        *[4, 23, 2, 3, 14, 2],
        *[1, 21, 2, 3, 15, 2],
    ]
    assert [text for text, *_ in Counting.log[1:-1]] == ["answer <end>", "42 <end>"]
    assert trajectory.environment == {"score": 1.5, "turn_scores": [0.0, 0.5, 1.0]}


async def test_calls_over_the_limit_get_an_error_and_the_environment_goes_on():
    script = [said([*CALL_1, 2]), said([*CALL_1, 2]), *answers(14)]
    trajectory = await run("Counting", script, answering("one"), max_tool_calls=1, environment_kwargs={"last": 1})
    assert [turn.results[0].status.value for turn in trajectory.turns[:2]] == ["ok", "over_limit"]
    assert trajectory.stop_reason is StopReason.FINISHED


async def test_a_turn_that_the_budget_cut_is_told_to_the_environment():
    cut = said([13, 13, 13], FinishReason.LENGTH)
    trajectory = await run("Counting", [cut, *answers(14)], max_tokens=2, environment_kwargs={"last": 2})
    assert [is_cut for _, is_cut, _ in Counting.log[1:-1]] == [True, False]
    assert list(trajectory.sequences[0].token_ids) == [*PROMPT_IDS, 13, 13, 2, 1, 21, 2, 3, 14, 2]
    done = await run("Counting", [cut], max_tokens=2, environment_kwargs={"last": 1})
    assert (done.stop_reason, done.environment) == (StopReason.LENGTH, {"score": 1.0, "turn_scores": [1.0]})


async def test_the_reserve_makes_a_turn_the_last():
    # Response 9, reserve 4: 2 sampled and 4 between leave 3, no more than the reserve.
    trajectory = await run("Counting", answers(13, 14), max_total_response_length=9, final_answer_reserve=4)
    assert [is_last for *_, is_last in Counting.log[1:-1]] == [False, True]
    assert trajectory.stop_reason is StopReason.LENGTH
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.5, 0.5]}


async def test_an_environment_may_give_the_reserve_to_a_turn():
    config = make_config("LastTurn", final_answer_reserve=50, max_total_response_length=60)
    engine = ScriptedEngine(answers(13))
    loop = AgentLoop(engine, RENDERER, None, PARSERS["hermes"], config)
    await loop.run(PROMPT, 0, Sampling(1.0, 100))
    assert engine.requests[0].sampling.max_tokens == 60


async def test_an_answer_that_does_not_fit_ends_the_trajectory():
    # 2 sampled of 6; the answer takes 4 and leaves nothing.
    trajectory = await run("Counting", answers(13), max_total_response_length=6, environment_kwargs={"reward": None})
    assert trajectory.stop_reason is StopReason.LENGTH
    assert list(trajectory.sequences[0].token_ids) == [*PROMPT_IDS, 13, 2]
    assert trajectory.environment == {"score": 0.0, "turn_scores": [0.0]}


BAD_STEP = "not Step(messages, reward, done)"


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("Raising", {}, "step: KeyError: 'no such room'"),
        ("RaisingAtOnce", {}, "__init__: ValueError: no world"),
        ("RaisingLater", {}, "is_last_turn: ValueError: who knows"),
        ("CancellingItself", {}, "step: cancelled itself"),
        ("Exiting", {}, "reset: SystemExit: 3"),
        ("NotAsync", {}, "step: TypeError: step must be `async def`"),
        ("Returning", {"step": None}, BAD_STEP),
        ("Returning", {"step": "done"}, BAD_STEP),
        ("Returning", {"step": ([], 0.0, True, "no reason")}, BAD_STEP),
        ("Returning", {"step": ("Higher.", 0.0)}, "not a list of messages"),
        ("Returning", {"step": (["Higher."], 0.0)}, "a message is a dict"),
        ("Returning", {"step": ([{"content": "Higher."}], 0.0)}, "each needs a role"),
        ("Returning", {"step": ([], float("nan"), True)}, "as reward, not a finite number"),
        ("Returning", {"step": ([], "much", True)}, "as reward, not a finite number"),
        ("Returning", {"reset": "what"}, "reset returned 'what', not a list of messages"),
        ("Returning", {"reset": [{"role": "user", "content": 3}]}, "content must be text"),
    ],
)
async def test_what_user_code_does_wrong_ends_one_trajectory(name: str, kwargs: dict[str, Any], reason: str, caplog):
    loop = AgentLoop(ScriptedEngine(answers(13)), RENDERER, None, PARSERS["hermes"], make_config("Counting"))
    loop._environment.function, loop._environment.kwargs = globals()[name], kwargs  # type: ignore[union-attr]
    scored = []

    async def score(trajectory: Trajectory) -> Scores:
        scored.append(trajectory)
        return Scores(1.0)

    with caplog.at_level(logging.ERROR):
        group = await run_group(loop, PROMPT, 1, Sampling(1.0, 100), score)
        await loop.run(PROMPT, 1, Sampling(1.0, 100))
    (trajectory,) = group.trajectories
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert reason in (trajectory.failure or "")
    assert scored == []
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # told once


async def test_a_hanging_environment_ends_at_the_deadline_and_is_closed():
    trajectory = await run("Hanging", answers(13), trajectory_timeout=0.05)
    assert trajectory.stop_reason is StopReason.DEADLINE
    assert Counting.log[-1] == "close"


async def test_an_engine_that_dies_is_no_failure_of_the_environment():
    assert (await run("Counting", [])).stop_reason is StopReason.ENGINE_FAILED


async def test_an_engine_that_dies_behind_a_rewarded_turn_ends_the_trajectory():
    trajectory = await run("Counting", answers(13))
    assert trajectory.stop_reason is StopReason.ENGINE_FAILED
    assert trajectory.environment == {"score": 0.5, "turn_scores": [0.5, 0.0]}


async def test_an_environment_that_fails_to_close_is_logged(caplog):
    trajectory = await run("FailingToClose", answers(13), environment_kwargs={"last": 1})
    assert trajectory.stop_reason is StopReason.FINISHED
    assert "close: OSError: still open" in caplog.text


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("Empty", {}, r"has no method reset\. Write `async def reset\(self, \.\.\.\)`"),
        ("NotAsync", {}, "step of '.*' must be a coroutine"),
        ("WithoutTurn", {}, "step of '.*' must take 1 argument"),
        ("Counting", {"lst": 3}, "environment_kwargs: unknown name 'lst'. Did you mean 'last'"),
        ("Countin", {}, "Did you mean 'Counting'"),
        ("PROMPT_IDS", {}, "is not a class or function"),
    ],
)
def test_load_environment_checks_the_class_before_the_run(name: str, kwargs: dict[str, Any], reason: str):
    config = make_config(name, environment_kwargs=kwargs)
    with pytest.raises(ConfigError, match=reason):
        load_environment(config.rl_config)


def test_load_environment_suggests_a_name(tmp_path: Path):
    config = make_config("Counting")
    config.rl_config.environment = "tool"
    with pytest.raises(ConfigError, match="Did you mean 'tools'"):
        load_environment(config.rl_config)
    config.rl_config.environment = f"{tmp_path}/absent.py:World"
    with pytest.raises(ConfigError, match="does not import"):
        load_environment(config.rl_config)


async def test_an_environment_of_a_template_that_drops_thoughts_has_a_sequence_for_each_history():
    renderer = Renderer(byte_level(chat_templates.QWEN3), "empty", [])
    texts = ["<think>\nI see.\n</think>\n\none", "two", "three"]
    script = [said(renderer.encoder.encode(f"{text}<|im_end|>", behind=True)) for text in texts]
    loop = AgentLoop(ScriptedEngine(script), renderer, None, PARSERS["hermes"], make_config("Counting"))
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 100))
    first, second = (renderer.decode(list(map(int, s.token_ids))) for s in trajectory.sequences)
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert first == asked.format("what") + texts[0] + "<|im_end|>"
    # The thought is gone where the user speaks again; from then on nothing is rewritten.
    assert (
        second
        == "<|im_end|>\n".join(
            [asked.format("what") + "one", asked.format("one") + "two", asked.format("two") + "three"]
        )
        + "<|im_end|>"
    )
    assert [int(sum(s.loss_mask)) for s in trajectory.sequences] == [
        len(script[0].token_ids),
        len(script[1].token_ids) + len(script[2].token_ids),
    ]


async def test_the_environment_of_messages_of_the_page_is_a_game(tmp_path: Path):
    page = (Path(__file__).parents[3] / "docs/environments.md").read_text()
    code = page.partition("```python\n# turns.py\n")[2].partition("```")[0]
    (tmp_path / "guess.py").write_text(code)
    renderer = Renderer(byte_level(chat_templates.CHATML), "empty", [])
    number = random.Random("p").randint(1, 20)
    guesses = [f"I say {number + 1}", "I pass", f"I say {number - 1}", f"It is {number}"]
    script = [said(renderer.encoder.encode(f"{guess}<|im_end|>", behind=True)) for guess in guesses]
    config = make_config("Counting", environment_kwargs={"largest": 20})
    config.rl_config.environment = f"{tmp_path}/guess.py:GuessTheNumber"
    loop = AgentLoop(ScriptedEngine(script), renderer, None, PARSERS["hermes"], config)
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 100))
    hints = [[message["content"] for message in turn.messages] for turn in trajectory.turns]
    assert hints == [["Lower."], ["Say a number."], ["Higher."], []]
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.0, 0.0, 0.0, 1.0]}
    assert trajectory.prompt.messages[0]["content"] == "Guess my number from 1 to 20. Say one number."
