"""Agent functions: the user's own agent, in a process of its own, which reaches the model through the endpoint.

docs/agents.md shows one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
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
from rl.serving.frames import read_frame, to_frame
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
    """The agent raised."""


class AgentDiedError(AgentError):
    """The agent's process died, or was killed."""


class AgentProcess:
    """One child process with the agent's function; it starts on first use, and again after it was killed.

    Args:
        target: `package.module:function` or `path/file.py:function`.
        kwargs: Keyword arguments of the function.
    """

    def __init__(self, target: str, kwargs: dict[str, Any]) -> None:
        self._target, self._kwargs = target, kwargs
        self._child: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._starting: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Outcome | str | None]] = {}

    async def run(self, prompt: Prompt, client: AgentClient) -> Outcome | str | None:
        """Run the agent on one prompt.

        Returns:
            Its score, a description of what is wrong with its result, or None if it returned None.

        Raises:
            AgentError: It raised.
            AgentDiedError: Its process died, or did not start.
        """
        writer = await self._started()
        number = next(self._numbers)
        ended = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(to_frame(("run", number, prompt, client)))
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await self._cancel(number, ended)
            raise
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Kill the process."""
        if self._starting is not None:
            self._starting.cancel()
        self._stop("the run ended")

    async def _cancel(self, number: int, ended: asyncio.Future[Outcome | str | None]) -> None:
        if self._writer is not None:
            self._writer.write(to_frame(("cancel", number)))
        await asyncio.wait({ended}, timeout=_GRACE_S)
        if not ended.done():
            logger.error("%s: the process does not answer %g s after a cancellation. Killing it.", _WHERE, _GRACE_S)
            self._stop("its process was killed, because another trajectory's agent blocked it")
        ended.exception()  # read, so that asyncio does not report it

    async def _started(self) -> asyncio.StreamWriter:
        while self._writer is None:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start())
            starting = self._starting
            try:
                await asyncio.shield(starting)  # the start outlives the trajectory that asked first
            finally:
                if starting.done() and self._starting is starting:
                    self._starting = None
        return self._writer

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from rl.serving.agent_process import main; main()"),
                    *(str(theirs.fileno()), self._target, str(os.getpid())),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            writer.write(to_frame(self._kwargs))
            async with asyncio.timeout(_START_TIMEOUT_S):
                is_ready, problem = await read_frame(reader)
        except TimeoutError:
            is_ready, problem = False, f"did not import within {_START_TIMEOUT_S:g} s"
        except EOFError:
            is_ready, problem = False, "its process died while it imported the function"
        except BaseException:
            _kill(child, writer)
            raise
        if not is_ready:
            _kill(child, writer)
            raise AgentDiedError(problem)
        self._child, self._writer = child, writer
        self._reading = asyncio.create_task(self._read(reader, writer))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                number, is_value, value = await read_frame(reader)
                ended = self._waiting.get(number)
                if ended is None or ended.done():
                    continue
                if is_value:
                    ended.set_result(value)
                else:
                    ended.set_exception(AgentError(value))
        except EOFError:
            if self._writer is writer:
                self._stop("its process died")

    def _stop(self, reason: str) -> None:
        """Kill the process and fail all agents in it."""
        if self._child is not None and self._writer is not None:
            _kill(self._child, self._writer)
        self._child = self._writer = None
        for ended in self._waiting.values():
            if not ended.done():
                ended.set_exception(AgentDiedError(reason))


def _environment() -> dict[str, str]:
    """The child's: it finds the package, and reaches the endpoint without a proxy."""
    path = os.pathsep.join([str(_PACKAGE_ROOT), *(p for p in sys.path if p)])
    direct = {
        name: ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
        for name in ("NO_PROXY", "no_proxy")
    }
    return {**os.environ, **direct, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _kill(child: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
    """Kill a process with all that it started in its group."""
    writer.close()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


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
            is_out_of_tokens = policy.stop_reason is StopReason.LENGTH and not isinstance(error, AgentDiedError)
            if not is_out_of_tokens:
                raise self._code.failure(f"{error}") from error
            outcome = Outcome(0.0)  # it did not expect the end of its budget
        finally:
            await self._endpoint.end(client.api_key)
        return policy.end(outcome, self._code)
