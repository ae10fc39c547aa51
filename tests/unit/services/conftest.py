import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from rl.services.embedded import EmbeddedSandbox

Post = Callable[..., Any]


@pytest.fixture(scope="session")
def sandbox():
    with EmbeddedSandbox(workers=4) as running:
        yield running


@pytest.fixture
def post(sandbox) -> Post:
    def send(code: str, language: str = "python", *, status: int = 200, **fields: Any) -> Any:
        body = {"code": code, "language": language, "run_timeout": 5, **fields}
        return post_json(sandbox.url, json.dumps(body).encode(), status)

    return send


def statuses(pid: int, *, recursive: bool) -> list[str]:
    """Statuses of the running processes that a process has started."""
    found = []
    for process in psutil.Process(pid).children(recursive=recursive):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.status())
    return [status for status in found if status != psutil.STATUS_ZOMBIE]


def post_json(url: str, body: bytes, status: int) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == status
            return json.load(response)
    except urllib.error.HTTPError as error:
        assert error.code == status, error.read()
        return json.load(error)
