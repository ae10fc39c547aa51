"""Agent functions: the user's own agent, in a process of its own, which reaches the model through the endpoint.

docs/agents.md shows one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rl.chat.parsers import Parser
from rl.config.schema import Config, RLConfig
from rl.errors import ConfigError
from rl.rewards.outcome import Outcome
from rl.rollout.dialog import Dialog
from rl.rollout.episode import Episode
from rl.rollout.rollout_function import Policy
from rl.rollout.tool_environment import ToolEnvironment
from rl.rollout.user_code import UserCode, load_named
from rl.serving.client import AgentClient
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint
from rl.types import Prompt, StopReason

logger = logging.getLogger(__name__)

_WHERE = "rl_config.agent_function"
_START_TIMEOUT_S = 120.0
_GRACE_S = 5.0
"""Seconds in which a cancelled agent must end. Otherwise it blocks the process, which is killed."""
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def load_agent_function(rl: RLConfig) -> UserCode | None:
    """Find the agent function that the configuration names.

    Raises:
        ConfigError: There is none of this name, or it cannot be called with a prompt, a client and
            `agent_function_kwargs`.
    """
    if rl.agent_function is None:
        return None
    code = load_named(_WHERE, rl.agent_function, [], rl.agent_function_kwargs)
    if isinstance(code.function, type):
        raise ConfigError(f"{_WHERE}: '{code.name}' is a class. Write `async def solve(prompt, client)`.")
    code.check_call(2, "as solve(prompt, client, **kwargs)")
    return code


class AgentError(Exception):
    """The agent raised, or its process ended."""


class AgentProcess:
    """One child process with the agent's function; it starts on first use, and again after it was killed.

    Args:
        target: `package.module:function` or `path/file.py:function`.
        kwargs: Keyword arguments of the function.
    """

    def __init__(self, target: str, kwargs: dict[str, Any]) -> None:
        self._target, self._kwargs = target, kwargs
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Outcome | str | None]] = {}

    async def run(self, prompt: Prompt, client: AgentClient) -> Outcome | str | None:
        """Run the agent on one prompt.

        Returns:
            Its score, a description of what is wrong with its result, or None if it returned None.

        Raises:
            AgentError: It raised, or its process died.
        """
        async with self._starting:
            connection = self._connection or await self._start()
        number = next(self._numbers)
        ended = self._waiting[number] = asyncio.get_running_loop().create_future()
        connection.send(("run", number, prompt, client))
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await self._cancel(number, ended)
            raise
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Kill the process."""
        self._stop("the run ended")

    async def _cancel(self, number: int, ended: asyncio.Future[Outcome | str | None]) -> None:
        if self._connection is None:
            return
        self._connection.send(("cancel", number))
        await asyncio.wait({ended}, timeout=_GRACE_S)
        if not ended.done():
            logger.error(
                "%s: does not answer %g s after the deadline of a trajectory. Killing its process.", _WHERE, _GRACE_S
            )
            self._stop("its process was killed, because another trajectory's agent blocked it")
        ended.exception()  # read, so that asyncio does not report it

    async def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(_PACKAGE_ROOT), *(p for p in sys.path if p)])
        with theirs:
            self._child = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from rl.serving.agent_process import main; main()"),
                    *(str(theirs.fileno()), self._target),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        connection = Connection(ours.detach())
        connection.send(self._kwargs)
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection.fileno(), _set, ready)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await ready
            is_ready, problem = connection.recv()
        except TimeoutError:
            is_ready, problem = False, f"did not import within {_START_TIMEOUT_S:g} s"
        except (EOFError, ConnectionError):
            is_ready, problem = False, "its process died while it imported the function"
        self._connection = connection
        loop.remove_reader(connection.fileno())
        if not is_ready:
            self._stop(problem)
            raise AgentError(problem)
        loop.add_reader(connection.fileno(), self._read)
        return connection

    def _read(self) -> None:
        assert self._connection is not None, "it is read while it is open"
        try:
            while self._connection.poll():
                _, number, is_value, value = self._connection.recv()
                ended = self._waiting.get(number)
                if ended is None or ended.done():
                    continue
                if is_value:
                    ended.set_result(value)
                else:
                    ended.set_exception(AgentError(value))
        except (EOFError, ConnectionError):
            self._stop("its process died")

    def _stop(self, reason: str) -> None:
        """Kill the process and fail all agents in it."""
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._connection = self._child = None
        for ended in self._waiting.values():
            if not ended.done():
                ended.set_exception(AgentError(reason))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Agents:
    """The agents of one rollout worker, with the endpoint that they reach the model through.

    Args:
        config: The run's configuration.
        dialog: The worker's, for its tokenizer.
        code: From `load_agent_function`.
    """

    def __init__(self, config: Config, dialog: Dialog, code: UserCode) -> None:
        rl = config.rl_config
        self._code = code
        self._processes = [AgentProcess(code.name, code.kwargs) for _ in range(rl.num_agent_processes)]
        self._turns = itertools.cycle(self._processes)
        name = Path(config.actor_config.load).name or "policy"
        dialogs = Dialogs(dialog.renderer.tokenizer, rl)
        self._endpoint = Endpoint(dialogs, model=name, max_model_len=config.generate_config.max_model_len)

    @classmethod
    async def start(cls, config: Config, dialog: Dialog) -> Agents | None:
        """Start the endpoint, if the configuration names an agent function. Processes start on first use."""
        code = load_agent_function(config.rl_config)
        if code is None:
            return None
        agents = cls(config, dialog, code)
        await agents._endpoint.start()
        return agents

    async def close(self) -> None:
        """End the processes and the endpoint."""
        for process in self._processes:
            await process.close()
        await self._endpoint.close()

    async def run(self, episode: Episode, parser: Parser, tools: ToolEnvironment) -> StopReason:
        """Run the agent to its end; see `rl.rollout.rollout_function.run_rollout_function`.

        Raises:
            UserCodeError: It raised, or returned something that is not a score.
            RolloutError: The engine died.
        """
        policy = Policy(episode, parser, tools)
        client = self._endpoint.open(policy, episode.sampling)
        try:
            outcome = await next(self._turns).run(episode.prompt, client)
        except AgentError as error:
            if policy.engine_error is not None:
                raise policy.engine_error from error
            if policy.stop_reason is StopReason.LENGTH:  # it did not expect the end of its budget
                outcome = Outcome(0.0)
            else:
                raise self._code.failure(f"{error}") from error
        finally:
            self._endpoint.end(client)
        return policy.end(outcome, self._code)
