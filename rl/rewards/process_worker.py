"""Calls a reward function in a process of its own, which is killed when a call passes its deadline."""

from __future__ import annotations

import json
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

    def call(self, trajectory: Trajectory, timeout: float) -> Any:
        """Score one trajectory; blocks, so call it from a thread. Calls wait for each other.

        Args:
            trajectory: Sent by pickle.
            timeout: Seconds from the moment the process takes up the call.

        Returns:
            What the function returned.

        Raises:
            TimeoutError: The deadline passed, and the process was killed.
            RuntimeError: The function raised, with its exception as text, or the process died.
        """
        with self._lock:
            connection = self._connection or self._start()
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
        return value

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._stop()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(_PACKAGE_ROOT), *(p for p in sys.path if p)])
        command = [sys.executable, "-c", "from rl.rewards.process_worker import main; main()"]
        arguments = [str(theirs.fileno()), self._target, json.dumps(self._kwargs)]
        with theirs:
            self._child = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
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
    descriptor, target, kwargs = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time-outs are off; ours are on
    connection = Connection(descriptor)
    function: Callable[..., Any] | None = None
    is_value, value = _outcome(import_target, target)
    if is_value:
        function = value
    connection.send((is_value, None if is_value else value))
    while function is not None:
        try:
            trajectory, timeout = connection.recv()
        except (EOFError, ConnectionError):
            return
        signal.alarm(math.ceil(timeout) + _ORPHAN_GRACE_S)  # ends a hanging call whose parent is gone
        is_value, value = _outcome(function, trajectory, **kwargs)
        signal.alarm(0)
        try:
            connection.send((is_value, value))
        except (EOFError, ConnectionError):
            return


def _outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, Any]:
    """Call what the user wrote, the one place where it may raise anything."""
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    return True, value
