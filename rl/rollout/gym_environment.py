"""Environments with Gymnasium's methods: `reset(**row)` and `step(action)`, or public methods that the model calls.

`GymEnvironment` makes an instance an environment of `rl.rollout.environments`. docs/environments.md shows some.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rl.rollout.environments import Step
from rl.rollout.gym_class import parameters_of
from rl.rollout.user_code import UserCode, UserCodeError
from rl.thoughts import said
from rl.tools.base import Tool, ToolConfig, ToolOutput
from rl.tools.function_tool import FunctionTool
from rl.tools.registry import Toolbox
from rl.tools.results import as_output
from rl.tools.threads import ThreadPool
from rl.types import Message, Prompt, ToolCall, ToolResult, Turn

_CALL_TIMEOUT_S = 86_400.0
"""The deadline of the trajectory is the one that counts."""


class GymEnvironment:
    """One trajectory in an environment of Gymnasium's form. Plain methods run in threads.

    Args:
        world: The user's instance.
        code: Its class, for messages.
        tools: From `tools_of_class`.
        plain_text: Takes the token that ends a turn away from its text.
        threads: Run plain methods.
    """

    def __init__(
        self,
        world: Any,
        code: UserCode,
        tools: list[dict[str, Any]],
        plain_text: Callable[[str], str],
        threads: ThreadPool,
    ) -> None:
        self._world, self._code, self._plain_text, self._threads = world, code, plain_text, threads
        self._has_step = callable(getattr(world, "step", None))
        self._toolbox = Toolbox([self._as_tool(schema) for schema in tools])
        self._session = self._toolbox.open_session("")
        self._turn = asyncio.Lock()
        self._reward: float | None = None
        """Reward of the present turn's calls."""
        self._seen_reward = 0.0
        """The attribute `reward` when it was last read."""
        self._done = False
        self._failure: UserCodeError | None = None
        """What was wrong with `step`, where a call led to it."""

    @property
    def tool_names(self) -> list[str]:
        """What the model can call."""
        return self._toolbox.names

    async def reset(self, prompt: Prompt) -> list[Message]:
        """Begin with the columns of a row. A text is added to the row's messages, messages replace them."""
        row = self._row(prompt)
        given = await self._call("reset", lambda: self._world.reset(**row))
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
            given = given[0]  # Gymnasium's observation and info
        self._read_attributes()
        self._reward, self._done = None, False
        if given is None:
            return list(prompt.messages)
        if _are_messages(given):
            return list(given)
        text = self._as_text("reset", given)
        return _with_text(prompt.messages, text)

    async def step(self, turn: Turn) -> Step:
        """Answer a turn without a call: its text is the action. Without `step`, it is the last one."""
        if not self._has_step:
            self._read_attributes()
            reward, done = self.take_outcome()
            return Step([], reward, done or not turn.is_cut)
        action = self._plain_text(said(turn)).strip()
        given = await self._call("step", lambda: self._world.step(action))
        observation, reward, self._done = self._read_step(given)
        if _are_messages(observation):
            return Step(observation, reward, self._done)
        text = None if observation is None else self._as_text("step", observation)
        return Step([{"role": "user", "content": text}] if text is not None else [], reward, self._done)

    async def execute(self, call: ToolCall) -> ToolResult:
        """Act by a call. Calls of one turn run one after the other."""
        async with self._turn:
            if self._failure is None:
                result = await self._session.execute(call)
            if self._failure is not None:
                raise self._failure
            if not self._has_step:
                self._read_attributes()
            return result

    def take_outcome(self) -> tuple[float | None, bool]:
        """Reward of the calls since the last time, and whether the trajectory is over."""
        reward, self._reward = self._reward, None
        return reward, self._done

    async def close(self) -> None:
        """Close the environment, if it has a method for that."""
        await self._session.close()
        await self._toolbox.close()
        if callable(getattr(self._world, "close", None)):
            await self._call("close", self._world.close)

    def _as_tool(self, schema: dict[str, Any]) -> Tool:
        config = ToolConfig(default_timeout=_CALL_TIMEOUT_S)
        if not self._has_step:
            return FunctionTool(config, getattr(self._world, schema["function"]["name"]))
        return _StepTool(config, schema, self._step_by_call)

    async def _step_by_call(self, name: str, arguments: dict[str, Any]) -> ToolOutput:
        if self._done:
            return ToolOutput("Error: it is over. This call had no effect.")
        try:
            action = {"name": name, "arguments": arguments}
            given = await self._call("step", lambda: self._world.step(action))
            observation, reward, self._done = self._read_step(given)
        except UserCodeError as error:
            self._failure = error
            raise
        self._add_reward(reward)
        return ToolOutput("" if observation is None else self._as_text("step", observation))

    async def _call(self, what: str, begin: Callable[[], Any]) -> Any:
        """Call a method: a coroutine function on the event loop, any other in a thread."""
        if inspect.iscoroutinefunction(getattr(self._world, what)):
            return await self._code.call(what, begin)
        return await self._code.call(what, lambda: self._in_thread(begin))

    async def _in_thread(self, begin: Callable[[], Any]) -> Any:
        await self._threads.wait_for_room()
        running = self._threads.start(begin)
        try:
            value = await asyncio.shield(running)
        finally:
            if not running.done():
                self._threads.abandon(running)
        return await value if inspect.isawaitable(value) else value

    def _row(self, prompt: Prompt) -> dict[str, Any]:
        """The columns of a row that `reset` takes."""
        row: dict[str, Any] = {
            "id": prompt.id,
            "messages": prompt.messages,
            "prompt": prompt.messages,
            "ground_truth": prompt.ground_truth,
            "data_source": prompt.data_source,
            **prompt.extra,
        }
        parameters = parameters_of(self._world.reset).values()
        named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        if "seed" in named:
            row.setdefault("seed", _seed(prompt.id))
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is not inspect.Parameter.VAR_KEYWORD]
        if missing := [name for name in needed if name not in row]:
            raise self._code.failure(f"reset needs a column '{missing[0]}', the row has {', '.join(row)}")
        return row if len(named) < len(parameters) else {name: row[name] for name in named if name in row}

    def _read_step(self, given: Any) -> tuple[Any, float | None, bool]:
        """Observation, reward and done, from these three or from Gymnasium's five."""
        match given:
            case (observation, reward, done):
                pass
            case (observation, reward, terminated, truncated, Mapping()):
                done = terminated or truncated
            case _:
                raise self._code.failure(
                    f"step returned {given!r:.80}, not observation, reward, done (nor Gymnasium's five values)"
                )
        return observation, reward, bool(done)

    def _read_attributes(self) -> None:
        """What the attributes `reward` and `done` of the world say; a turn gets the reward that it added."""
        self._done = self._done or bool(getattr(self._world, "done", False))
        given = getattr(self._world, "reward", None)
        if given is None or callable(given):
            return
        try:
            reward = float(given)
        except (TypeError, ValueError):
            raise self._code.failure(f"its attribute reward is {given!r:.80}, not a number") from None
        self._add_reward(reward - self._seen_reward)
        self._seen_reward = reward

    def _add_reward(self, reward: float | None) -> None:
        if reward is not None:
            self._reward = (self._reward or 0.0) + reward

    def _as_text(self, what: str, observation: Any) -> str:
        try:
            return as_output(observation).text
        except (TypeError, ValueError) as error:
            raise self._code.failure(f"{what} returned {observation!r:.80} as observation: {error}") from None


class _StepTool(Tool):
    """A tool whose calls are actions of `step`."""

    def __init__(self, config: ToolConfig, schema: dict[str, Any], act: Callable[..., Any]) -> None:
        super().__init__(config, schema)
        self._act = act

    async def execute(self, state: Any, arguments: dict[str, Any]) -> Any:
        return await self._act(self.name, arguments)


def _with_text(messages: list[Message], text: str) -> list[Message]:
    """Messages with a text added to the last one, if that is the user's, or else behind it."""
    last = messages[-1] if messages else {}
    if last.get("role") == "user" and isinstance(last["content"], str):
        return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{text}"}]
    return [*messages, {"role": "user", "content": text}]


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _seed(prompt_id: str) -> int:
    """The same for all samples of a prompt, in every process."""
    return int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=4).digest(), "big")
