"""Environments with Gymnasium's methods. Token lists written by hand: <user>=1 <end>=2 <assistant>=3 <tool>=4."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.rewards.registry import load_rewards
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import load_dialog
from rl.rollout.environment_code import load_environment
from rl.types import Prompt, Sampling, StopReason, ToolStatus, Trajectory
from tests import chat_templates
from tests.chat_templates import byte_level
from tests.fakes import BAD_CALL, CALL_1, CALL_2, ScriptedEngine, said, word_tokenizer
from tests.tiny import make_tiny_tokenizer

PROMPT = Prompt("p", [{"role": "user", "content": "what"}], "42", "test", {"number": 7})
PROMPT_IDS = [1, 10, 2, 3]
RENDERER = Renderer(word_tokenizer(), "empty", [])
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


class Recorder:
    """What the instances met, over all of them."""

    log: ClassVar[list[Any]] = []


class Counter(Recorder):
    """Says one, two; done at the third turn. Plain methods."""

    def __init__(self, *, reward: Any = 0.5) -> None:
        self.turn, self.reward_of_turn = 0, reward

    def reset(self, number: int, ground_truth: str, **row: Any) -> str:
        self.log.append((number, ground_truth, sorted(row), threading.current_thread() is threading.main_thread()))
        return "two"

    def step(self, action: str) -> tuple[str | None, float, bool]:
        self.log.append(action)
        self.turn += 1
        return ["one", "two", None][self.turn - 1], self.reward_of_turn, self.turn == 3

    def close(self) -> None:
        self.log.append("closed")


class AsyncCounter(Counter):
    async def reset(self, number: int, ground_truth: str, **row: Any) -> str:  # type: ignore[override]
        return super().reset(number, ground_truth, **row)

    async def step(self, action: str) -> tuple[str | None, float, bool]:  # type: ignore[override]
        return super().step(action)

    async def close(self) -> None:  # type: ignore[override]
        super().close()


class Gymnasium(Recorder):
    """The five values of Gymnasium, numbers as observations, a seed, and no close."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
        self.log.append(seed)
        return 1, {}

    def step(self, action: str) -> tuple[Any, ...]:
        return 42, 1.0, False, True, {"why": "time"}


class Quiet(Recorder):
    """No observation at first: the row's messages are the prompt. Then messages."""

    def reset(self, **row: Any) -> None:
        return None

    def step(self, action: str) -> Any:
        return [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}], None, False


class Replacing(Quiet):
    def reset(self, **row: Any) -> Any:
        return [{"role": "user", "content": "two"}]


class Methods(Recorder):
    """Its public methods are tools, as in TRL."""

    def __init__(self, *, target: int = 2) -> None:
        self.target, self.reward, self.done = target, 0.0, False

    def reset(self, **row: Any) -> None:
        self.reward, self.done = 0.0, False

    def add(self, a: int) -> str:
        """Add a number.

        Args:
            a: The number.
        """
        if a > 2:
            raise ValueError("three")
        self.reward += a / 2
        self.done = a == self.target
        return "one" if a == 1 else "two"

    def _hidden(self) -> None: ...


class Calls(Recorder):
    """Its actions are calls of `tools`."""

    tools: ClassVar[list[Any]] = [ADD]

    def reset(self, **row: Any) -> None: ...

    def step(self, action: Any) -> Any:
        self.log.append(action)
        return "three", 0.25, action == "think" or action == {"name": "add", "arguments": {"a": 2}}


class LateTools(Calls):
    """Knows its tools when it is made."""

    @property
    def tools(self) -> list[Any]:  # type: ignore[override]
        return [ADD]


class UnknownTools(Calls):
    @property
    def tools(self) -> list[Any]:  # type: ignore[override]
        raise OSError("no server")


class BrokenCalls(Calls):
    def step(self, action: Any) -> Any:
        return "three"


class Returning(Recorder):
    def __init__(self, *, step: Any = ("one", 0.0, False), reset: Any = None) -> None:
        self._step, self._reset = step, reset

    def reset(self, **row: Any) -> Any:
        return self._reset

    def step(self, action: str) -> Any:
        if isinstance(self._step, Exception):
            raise self._step
        return self._step


class NeedsColumn(Quiet):
    def reset(self, colour: str) -> None: ...  # type: ignore[override]


class Hanging(Quiet):
    ended: ClassVar[threading.Event] = threading.Event()

    def step(self, action: str) -> Any:
        self.ended.wait(10)


class NoActions:
    def reset(self, **row: Any) -> None: ...


class NoArgument(Quiet):
    def step(self) -> Any: ...  # type: ignore[override]


class UntypedMethod(NoActions):
    def add(self, a) -> None: ...


def make_counter() -> Counter:
    """A function that makes one will do."""
    return Counter()


@pytest.fixture(autouse=True)
def clean_log() -> None:
    Recorder.log.clear()


def make_config(environment: str, **rl: object) -> Config:
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 4
    config.rl_config.environment = f"{__name__}:{environment}"
    for key, value in rl.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    return config


async def run(environment: str, script: list[Any], max_tokens: int = 100, **rl: object) -> Trajectory:
    config = make_config(environment, **rl)
    loop = AgentLoop(ScriptedEngine(script), RENDERER, None, PARSERS["hermes"], config)
    return await loop.run(PROMPT, 0, Sampling(temperature=1.0, max_tokens=max_tokens))


def answers(*ids: int) -> list[Any]:
    return [said([i, 2]) for i in ids]


@pytest.mark.parametrize("name", ["Counter", "AsyncCounter", "make_counter"])
async def test_text_actions_are_answered_and_rewarded_turn_by_turn(name: str):
    trajectory = await run(name, answers(13, 14, 15))
    (sequence,) = trajectory.sequences
    first = [1, 10, 22, 2, 3]  # what the row says, and behind it what reset returned
    assert list(sequence.token_ids) == [*first, 13, 2, 1, 21, 2, 3, 14, 2, 1, 22, 2, 3, 15, 2]
    assert list(sequence.loss_mask) == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.environment == {"score": 1.5, "turn_scores": [0.5, 0.5, 0.5]}
    begun, *actions, closed = Recorder.log
    assert begun == (7, "42", ["data_source", "id", "messages", "prompt"], name == "AsyncCounter")
    assert (actions, closed) == (["think", "answer", "42"], "closed")  # without the end of the turn


async def test_turn_rewards_reach_turn_credit():
    trajectory = await run("Counter", answers(13, 14, 15))
    trajectory.take_scores(await load_rewards(["environment"], [2.0]).score(trajectory))
    assert (trajectory.score, trajectory.turn_rewards) == (3.0, [1.0, 1.0, 1.0])


async def test_gymnasiums_own_values_are_understood():
    trajectory = await run("Gymnasium", answers(13))
    assert trajectory.environment == {"score": 1.0, "turn_scores": [1.0]}
    assert trajectory.prompt.messages == [{"role": "user", "content": "what\n\n1"}]
    assert trajectory.turns[0].messages == [{"role": "user", "content": "42"}]
    await run("Gymnasium", answers(13))
    first, second = Recorder.log
    assert isinstance(first, int)
    assert first == second  # the same for each sample of a group


async def test_an_observation_may_be_missing_or_be_messages():
    trajectory = await run("Quiet", answers(13, 14), max_total_response_length=14)
    assert list(trajectory.sequences[0].token_ids) == [*PROMPT_IDS, 13, 2, 1, 21, 2, 1, 22, 2, 3, 14, 2]
    assert trajectory.environment == {"score": 0.0, "turn_scores": [0.0, 0.0]}  # the budget ended it
    replaced = await run("Replacing", answers(13), max_total_response_length=2)
    assert list(replaced.sequences[0].token_ids) == [1, 22, 2, 3, 13, 2]


async def test_public_methods_are_tools_and_their_attributes_rewards():
    script = [said([*CALL_1, 2]), said([*CALL_2, 2])]
    trajectory = await run("Methods", script)
    assert list(trajectory.sequences[0].token_ids) == [*PROMPT_IDS, 16, 18, 17, 2, 4, 21, 2, 3, 16, 19, 17, 2]
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.environment == {"score": 1.5, "turn_scores": [0.5, 1.0]}


async def test_an_answer_ends_an_environment_of_methods():
    trajectory = await run("Methods", [said([*CALL_1, 2]), *answers(15)])
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.environment == {"score": 0.5, "turn_scores": [0.5, 0.0]}


async def test_mistakes_in_calls_are_told_to_the_model():
    trajectory = await run("Methods", [said([*BAD_CALL, 2]), *answers(15)])
    (result,) = trajectory.turns[0].results
    assert (result.status, trajectory.stop_reason) == (ToolStatus.PARSE_ERROR, StopReason.FINISHED)


async def test_the_limit_of_calls_bounds_an_environment_of_tools():
    script = [said([*CALL_1, 2]), said([*CALL_1, 2])]
    trajectory = await run("Methods", script, max_tool_calls=1)
    assert trajectory.stop_reason is StopReason.TOOL_LIMIT
    assert trajectory.environment == {"score": 0.5, "turn_scores": [0.5, 0.0]}


@pytest.mark.parametrize("name", ["Calls", "LateTools"])
async def test_calls_are_actions_of_step(name: str):
    trajectory = await run(name, [said([*CALL_1, 2]), said([*CALL_2, 2])])
    assert list(trajectory.sequences[0].token_ids)[-8:] == [4, 23, 2, 3, 16, 19, 17, 2]
    assert trajectory.environment == {"score": 0.5, "turn_scores": [0.25, 0.25]}
    assert Recorder.log == [{"name": "add", "arguments": {"a": a}} for a in (1, 2)]


async def test_a_turn_without_a_call_is_a_text_action_too():
    trajectory = await run("Calls", answers(13))
    assert (Recorder.log, trajectory.stop_reason) == (["think"], StopReason.FINISHED)


async def test_calls_of_one_turn_come_in_order():
    script = [said([*CALL_1, *CALL_2, 2])]
    await run("Calls", script, max_parallel_calls=2)
    assert [action["arguments"]["a"] for action in Recorder.log] == [1, 2]


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("Returning", {"step": "over"}, "step returned 'over', not observation, reward, done"),
        ("Returning", {"step": ("one", 0.0)}, "step returned ('one', 0.0), not observation, reward, done"),
        ("Returning", {"step": ("one", "much", False)}, "step returned 'much' as reward, not a finite number"),
        ("Returning", {"step": ("one", float("nan"), False)}, "step returned nan as reward, not a finite number"),
        ("Returning", {"step": KeyError("no such room")}, "step: KeyError: 'no such room'"),
        ("NeedsColumn", {}, "reset needs a column 'colour', the row has id, messages, prompt, ground_truth"),
    ],
)
async def test_what_an_environment_does_wrong_names_it_and_ends_one_trajectory(name: str, kwargs: Any, reason: str):
    trajectory = await run(name, answers(13, 14), environment_kwargs=kwargs)
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert trajectory.failure is not None
    assert trajectory.failure.startswith(f"{__name__}:{name}: {reason}")


async def test_a_wrong_result_of_a_call_is_the_environments_fault_not_the_models():
    trajectory = await run("BrokenCalls", [said([*CALL_1, *CALL_1, 2])], max_parallel_calls=2)
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert "step returned 'three'" in (trajectory.failure or "")


async def test_a_hanging_plain_step_does_not_block_the_loop():
    try:
        slow, quick = await asyncio.gather(
            run("Hanging", answers(13), trajectory_timeout=0.2), run("Counter", answers(13, 14, 15))
        )
    finally:
        Hanging.ended.set()
    assert (slow.stop_reason, quick.stop_reason) == (StopReason.DEADLINE, StopReason.FINISHED)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NoActions", "has no method step, and no public method"),
        ("NoArgument", r"step of '.*' must be `def step\(self, action\)`"),
        ("UntypedMethod", "has no type"),
        ("UnknownTools", "its tools cannot be read. OSError: no server"),
    ],
)
def test_load_environment_checks_the_class_before_the_run(name: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        load_environment(make_config(name).rl_config)


def test_load_dialog_shows_the_tools_of_an_environment_to_the_model(tmp_path: Path):
    config = make_config("Methods", prompt_type="qwen_retool")
    config.actor_config.load = str(make_tiny_tokenizer(tmp_path))
    dialog = load_dialog(config)
    prompt = dialog.renderer.decode(dialog.renderer.render_prompt(PROMPT.messages))
    assert '"name": "add", "description": "Add a number."' in prompt
    assert [call.name for call in dialog.parser.parse(_CALL)] == ["add"]


def test_load_dialog_refuses_two_tools_of_one_name(tmp_path: Path):
    (tmp_path / "sums.py").write_text("def add(a: int) -> int:\n    return a\n")
    (tmp_path / "tools.yaml").write_text(f"tools: [{{function: '{tmp_path}/sums.py:add'}}]\n")
    config = make_config("Methods", prompt_type="qwen_retool", tool_config_path=str(tmp_path / "tools.yaml"))
    config.actor_config.load = str(make_tiny_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(ConfigError, match="has a tool 'add', and so has tool_config_path"):
        load_dialog(config)


async def test_in_process_plain_methods_run_in_the_callers_thread():
    trajectory = await run("Counter", answers(13, 14, 15), in_process=True)
    assert trajectory.stop_reason is StopReason.FINISHED
    assert Recorder.log[0][-1] is True


_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


async def test_the_game_of_the_page_is_thirty_lines(tmp_path: Path):
    code = page_file("guess.py")
    assert code.count("\n") <= 30
    (tmp_path / "guess.py").write_text(code)
    renderer = Renderer(byte_level(chat_templates.CHATML), "empty", [])
    number = random.Random("p").randint(1, 20)
    texts = (f"I say {number - 1}", "pass", str(number + 1), str(number))
    script = [said(renderer.encoder.encode(f"{text}<|im_end|>", behind=True)) for text in texts]
    config = make_config("Counter", environment_kwargs={"largest": 20})
    config.rl_config.environment = f"{tmp_path}/guess.py:GuessTheNumber"
    loop = AgentLoop(ScriptedEngine(script), renderer, None, PARSERS["hermes"], config)
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 200))
    hints = [[message["content"] for message in turn.messages] for turn in trajectory.turns]
    assert hints == [["Higher."], ["Say a number."], ["Lower."], ["Right."]]
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.0, 0.0, 0.0, 1.0]}


async def test_the_door_of_the_page_opens_by_a_call(tmp_path: Path):
    (tmp_path / "door.py").write_text(page_file("door.py"))
    renderer = Renderer(byte_level(chat_templates.CHATML), "qwen_retool", [])
    calls = [f'<tool_call>\n{{"name": "enter", "arguments": {{"code": "{code}"}}}}\n</tool_call>' for code in (41, 42)]
    script = [said(renderer.encoder.encode(f"{call}<|im_end|>", behind=True)) for call in calls]
    config = make_config("Counter")
    config.rl_config.environment = f"{tmp_path}/door.py:LockedDoor"
    loop = AgentLoop(ScriptedEngine(script), renderer, None, PARSERS["hermes"], config)
    trajectory = await loop.run(PROMPT, 0, Sampling(1.0, 200))
    assert [turn.results[0].text for turn in trajectory.turns] == ["It stays closed.", "It opens."]
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.0, 1.0]}


async def test_the_puzzle_of_the_page_scores_the_last_try(tmp_path: Path):
    (tmp_path / "puzzle.py").write_text(page_file("puzzle.py"))
    renderer = Renderer(byte_level(chat_templates.CHATML), "empty", [])
    script = [said(renderer.encoder.encode(f"{text}<|im_end|>", behind=True)) for text in ("none", "nothing")]
    config = make_config("Counter", environment_kwargs={"task": "chain_sum", "max_tries": 2})
    config.rl_config.environment = f"{tmp_path}/puzzle.py:Puzzle"
    trajectories = [
        await AgentLoop(ScriptedEngine(script), renderer, None, PARSERS["hermes"], config).run(
            PROMPT, i, Sampling(1.0, 99)
        )
        for i in range(2)
    ]
    questions = {trajectory.prompt.messages[0]["content"] for trajectory in trajectories}
    assert len(questions) == 1  # the same for the samples of a group
    assert "arithmetic problem" in questions.pop()
    assert [turn.messages[0]["content"] for turn in trajectories[0].turns] == ["Wrong. Try again."] * 2
    score = trajectories[0].environment
    assert score is not None
    assert score["turn_scores"][0] == 0.0


def page_file(name: str) -> str:
    """A file that the page shows."""
    page = (Path(__file__).parents[3] / "docs/environments.md").read_text()
    return page.partition(f"```python\n# {name}\n")[2].partition("```")[0]
