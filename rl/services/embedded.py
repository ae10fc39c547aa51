"""Starts a service for the duration of a run, as a child process that ends with its parent."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from rl.errors import ServiceError

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT_S = 5.0
_INDEX_TIMEOUT_S = 3600.0
_PROGRAM = """
import sys
from rl.errors import TurnwiseError
from rl.services.{name}.server import serve
try:
    serve(**{arguments!r})
except TurnwiseError as error:
    sys.exit(str(error))
"""


class EmbeddedService:
    """A service on a free port of the loopback interface. A context manager; starts in `__init__`.

    The child reads a pipe whose write end only the parent has, so it ends when the parent ends in any way.
    """

    def __init__(self, name: str, route: str, arguments: dict[str, Any], start_timeout_s: float = 60.0) -> None:
        """Start it and wait until it answers.

        Args:
            name: The package in `rl.services`, and the command that starts it without a run.
            route: The end of `url`.
            arguments: More arguments of `serve`: strings, numbers and None.
            start_timeout_s: Longest wait for its first answer.

        Raises:
            ServiceError: It did not start.
        """
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = listener.getsockname()[1]
        self._name, self._route = name, route
        read_end, self._parent_pipe = os.pipe()
        inherited = {"inherited_socket": listener.fileno(), "parent_pipe": read_end}
        program = _PROGRAM.format(name=name, arguments=arguments | inherited)
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
        self._wait_until_healthy(start_timeout_s)

    @property
    def url(self) -> str:
        """Address for the requests of tools."""
        return f"http://127.0.0.1:{self.port}{self._route}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def health(self) -> dict[str, object]:
        """The answer to `GET /health`.

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
        """Stop it, and wait for its end."""
        if self._parent_pipe < 0:
            return
        os.close(self._parent_pipe)
        self._parent_pipe = -1
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_healthy(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self.close()
                raise ServiceError(
                    f"{self._name}: ended at start with code {self._process.returncode}. See its messages above."
                )
            try:
                self.health()
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.05)
            else:
                return
        self.close()
        raise ServiceError(
            f"{self._name}: did not answer within {timeout_s:g} s. Start one with `python -m rl {self._name}`."
        )


class EmbeddedSandbox(EmbeddedService):
    """A code sandbox. Its `url` is a value for `sandbox_fusion_url`."""

    def __init__(self, workers: int | None = None) -> None:
        """Start it.

        Args:
            workers: Programs that compute at once; None for the server's default.

        Raises:
            ServiceError: It did not start.
        """
        super().__init__("sandbox", "/run_code", {"workers": workers})


class EmbeddedRetriever(EmbeddedService):
    """A retriever for one corpus. Its `url` is a value for `retrieval_service_url`."""

    def __init__(self, corpus: Path, index: Path | None = None) -> None:
        """Start it. The first start for a corpus builds its index, which may take long.

        Args:
            corpus: .jsonl or .parquet file.
            index: Folder of the index; by default next to the corpus.

        Raises:
            ServiceError: It did not start.
        """
        arguments = {"corpus": str(corpus), "index": None if index is None else str(index)}
        super().__init__("retriever", "/retrieve", arguments, _INDEX_TIMEOUT_S)
