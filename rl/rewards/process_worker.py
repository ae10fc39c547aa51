"""Calls of a reward function in its own process, which is killed if a call exceeds its deadline."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rl.config.imports import import_target, split_convention
from rl.rewards.conventions import adapt
from rl.rewards.outcome import Outcome, read_outcome
from rl.types import Trajectory

_START_TIMEOUT_S = 120.0
_ORPHAN_GRACE_S = 5
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class RewardProcess:
    """One child process with one reward function. It starts on first use and restarts after a kill or a crash."""

    def __init__(self, target: str, kwargs: dict[str, Any]) -> None:
        self._target = target
        self._kwargs = kwargs
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process and import the function, if that has not happened yet.

        Raises:
            TimeoutError: The import takes too long.
            RuntimeError: The import fails, or the process dies.
        """
        with self._lock:
            self._connect()

    def call(self, trajectory: Trajectory, timeout: float) -> Outcome | str:
        """Score one trajectory. The call blocks, so make it from a thread; concurrent calls wait for each other.

        Args:
            trajectory: Sent by pickle.
            timeout: Seconds from the start of the call in the process.

        Returns:
            Result of `rl.rewards.outcome.read_outcome`, which runs in the child.

        Raises:
            TimeoutError: The deadline passed and the process was killed.
            RuntimeError: The function raised (the message is its exception), or the process died.
        """
        with self._lock:
            connection = self._connect()
            try:
                connection.send((trajectory, timeout))
                if not connection.poll(timeout):
                    self._stop()
                    raise TimeoutError(f"no score within {timeout:g} s")
                is_value, value = connection.recv()
            except (EOFError, ConnectionError) as error:
                self._stop()
                raise RuntimeError("its process died") from error
        if not is_value:
            raise RuntimeError(value)
        outcome: Outcome | str = value
        return outcome

    def close(self) -> None:
        """Kill the child process; this ends a running call."""
        if (child := self._child) is not None:
            child.kill()
        with self._lock:
            self._stop()

    def _connect(self) -> Connection:
        """Return the connection to the process; start the process if necessary."""
        if self._connection is not None:
            return self._connection
        try:
            return self._start()
        except (EOFError, ConnectionError) as error:
            self._stop()
            raise RuntimeError("its process died while it imported the function") from error

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(_PACKAGE_ROOT), *(p for p in sys.path if p)])
        command = [sys.executable, "-c", "from rl.rewards.process_worker import main; main()"]
        arguments = [str(theirs.fileno()), self._target]
        with theirs:
            self._child = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._connection.send(self._kwargs)
        if not self._connection.poll(_START_TIMEOUT_S):
            self._stop()
            raise TimeoutError(f"the function did not import within {_START_TIMEOUT_S:g} s")
        is_ready, problem = self._connection.recv()
        if not is_ready:
            self._stop()
            raise RuntimeError(problem)
        return self._connection

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self._connection is not None:
            self._connection.close()
        self._child = self._connection = None


def main() -> None:
    """Entry point of the child: import the function, then answer calls until the parent closes the connection."""
    descriptor, target = int(sys.argv[1]), sys.argv[2]
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off; ours replace them
    connection = Connection(descriptor)
    try:
        kwargs = connection.recv()
        is_value, value = _attempt(lambda: adapt(target, import_target(split_convention(target)[1])))
        connection.send((is_value, None if is_value else value))
        while is_value:
            _answer(connection, value, kwargs)
    except (EOFError, ConnectionError):
        return


def _answer(connection: Connection, function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Receive one call, run it and send its result."""
    trajectory, timeout = connection.recv()
    signal.alarm(math.ceil(timeout) + _ORPHAN_GRACE_S)  # ends a hanging call if the parent died
    outcome = _attempt(lambda: read_outcome(_awaited(function(trajectory, **kwargs)), len(trajectory.turns)))
    signal.alarm(0)
    connection.send(outcome)


def _awaited(value: Any) -> Any:
    """Run a coroutine to its result. A decorated `async def` may look like a plain function but return a coroutine."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _attempt(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Run user code, which may raise anything; return (True, result) or (False, error text)."""
    try:
        return True, call()
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
