"""Starts a sandbox for the length of a run, as a child process that ends with its parent."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from rl.errors import ServiceError

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
_PROGRAM = """
from rl.services.sandbox import serve
serve(inherited_socket={socket}, parent_pipe={pipe}, workers={workers})
"""


class EmbeddedSandbox:
    """A sandbox on a free port of the loopback interface. A context manager; starts in `__init__`.

    The child reads a pipe that only the parent writes to: it ends when the parent does, however that happens.
    """

    def __init__(self, workers: int | None = None) -> None:
        """Start it and wait until it answers.

        Args:
            workers: Programs at once; by default the server's own choice.

        Raises:
            ServiceError: It did not start.
        """
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = listener.getsockname()[1]
        read_end, self._parent_pipe = os.pipe()
        program = _PROGRAM.format(socket=listener.fileno(), pipe=read_end, workers=workers)
        path = os.pathsep.join([str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with listener:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[listener.fileno(), read_end],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        os.close(read_end)
        self._wait_until_healthy()

    @property
    def url(self) -> str:
        """For `sandbox_fusion_url`."""
        return f"http://127.0.0.1:{self.port}/run_code"

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    def health(self) -> dict[str, object]:
        """What `GET /health` answers.

        Raises:
            OSError: No connection.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STOP_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            answer: dict[str, object] = json.load(connection.getresponse())
        finally:
            connection.close()
        return answer

    def close(self) -> None:
        """Stop it, and wait until it is gone."""
        if self._parent_pipe < 0:
            return
        os.close(self._parent_pipe)
        self._parent_pipe = -1
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> EmbeddedSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self.close()
                raise ServiceError(
                    f"sandbox: ended at start with code {self._process.returncode}. Its messages are above."
                )
            try:
                self.health()
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.05)
            else:
                return
        self.close()
        raise ServiceError(
            f"sandbox: did not answer within {_START_TIMEOUT_S:g} s. Start one with `python -m rl sandbox`."
        )
