"""What docs/sandbox.md shows: each request is sent as it stands there and gets the answer that stands under it."""

from __future__ import annotations

import http.client
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.services.embedded import EmbeddedSandbox

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sandbox.md").read_text()
EXAMPLES = re.findall(r"^    curl ((?:[^\n]*\n    )*[^\n]*\n)(?:\n```json\n(.*?)```)?", PAGE, re.M | re.S)
"""Commands without their first word, several where they stand under each other, and the answer to the last one."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[EmbeddedSandbox]:
    with EmbeddedSandbox(workers=1) as running:
        yield running


def send(command: str, port: int) -> bytes:
    """Do what curl would."""
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("http://127.0.0.1:8080/"))
    body = words[words.index("-d") + 1] if "-d" in words else None
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            method, url.partition(":8080")[2], body, {"Content-Type": "application/json"} if body else {}
        )
        response = connection.getresponse()
        assert response.status == 200, command
        return response.read()
    finally:
        connection.close()


def without_chance(answer: Any) -> Any:
    """Times and the machine's name differ from run to run."""
    if isinstance(answer, dict):
        chance = ("execution_time", "executor_pod_name", "queue_time")
        return {key: without_chance(value) for key, value in answer.items() if key not in chance}
    return answer


def test_sandbox_page_requests_get_the_answers_under_them(sandbox: EmbeddedSandbox) -> None:
    num_answers = 0
    for commands, shown in EXAMPLES:
        answer = b""
        for command in commands.split("\n    curl "):
            answer = send(command, sandbox.port)
        if shown:
            assert without_chance(json.loads(answer)) == without_chance(json.loads(shown)), commands
            num_answers += 1
    assert (len(EXAMPLES), num_answers) == (7, 5)


def test_sandbox_page_tells_every_metric_and_every_layer(sandbox: EmbeddedSandbox) -> None:
    text = send("http://127.0.0.1:8080/metrics", sandbox.port).decode()
    names = {name.removesuffix("_created") for name in re.findall(r"^# TYPE (\w+)", text, re.M)}
    table = PAGE.partition("## Metrics")[2]
    assert {name for name in names if name not in table} == set()
    assert {name for name in re.findall(r"`(sandbox_\w+)", table) if name not in names} == set()
    layers = sandbox.health()["isolation"]
    assert isinstance(layers, dict)
    assert set(
        re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Isolation")[2].partition("## Metrics")[0], re.M)
    ) == set(layers)
