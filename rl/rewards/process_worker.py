"""Calls a reward function in a process of its own, which is killed when a call passes its deadline."""

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

from rl.config.imports import import_target
from rl.rewards.outcome import Outcome, read_outcome
from rl.types import Trajectory

_START_TIMEOUT_S = 120.0
_ORPHAN_GRACE_S = 5
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class RewardProcess:
    """One child process that holds one reward function. Started on first use, replaced after a kill or a crash."""

    def __init__(self, target: str, kwargs: dict[str, Any]) -> None:
        self._target = target
        self._kwargs = kwargs
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process and import the function in it, unless that is done.

        Raises:
            TimeoutError: It takes too long.
            RuntimeError: The function does not import, or the process died.
        """
        with self._lock:
            self._started()

    def call(self, trajectory: Trajectory, timeout: float) -> Outcome | str:
        """Score one trajectory; blocks, so call it from a thread. Calls wait for each other.

        Args:
            trajectory: Sent by pickle.
            timeout: Seconds from the moment the process takes up the call.

        Returns:
            What the function returned, as `rl.rewards.outcome.read_outcome` reads it, there in the child.

        Raises:
            TimeoutError: The deadline passed, and the process was killed.
            RuntimeError: The function raised, with its exception as text, or the process died.
        """
        with self._lock:
            connection = self._started()
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
        """End the child process, and with it a call that is under way."""
        if (child := self._child) is not None:
            child.kill()
        with self._lock:
            self._stop()

    def _started(self) -> Connection:
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
    """The child's side: import the function, then answer calls until the parent goes away."""
    descriptor, target = int(sys.argv[1]), sys.argv[2]
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time-outs are off; ours are on
    connection = Connection(descriptor)
    try:
        kwargs = connection.recv()
        is_value, value = _tried(lambda: import_target(target))
        connection.send((is_value, None if is_value else value))
        while is_value:
            _answer(connection, value, kwargs)
    except (EOFError, ConnectionError):
        return


def _answer(connection: Connection, function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Take one call and send what came of it, as plain values."""
    trajectory, timeout = connection.recv()
    signal.alarm(math.ceil(timeout) + _ORPHAN_GRACE_S)  # ends a hanging call whose parent is gone
    outcome = _tried(lambda: read_outcome(_finished(function(trajectory, **kwargs)), len(trajectory.turns)))
    signal.alarm(0)
    connection.send(outcome)


def _finished(value: Any) -> Any:
    """What a coroutine returns: a decorated `async def` looks like a plain function and hands one back."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _tried(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Call what the user wrote, the one place where it may raise anything."""
    try:
        return True, call()
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
