"""What the client programs share: groups, rewards and steps over plain HTTP, and a tool. Runs without Turnwise."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NUM_GROUPS, NUM_ROLLOUTS, NUM_TURNS, MAX_TOKENS = 2, 3, 3, 64
TOOL = {
    "name": "code_interpreter",
    "description": "A tool for executing code.",
    "parameters": {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "The code to execute."}},
        "required": ["code"],
    },
}
DOUBT = "Are you sure?"
"""What the user says to a turn without a call."""

Lead = Callable[[dict[str, str], str], None]
"""Leads a rollout that answers a question."""
_SUM = re.compile(r"print\((\d+) \+ (\d+)\)")
_calls: list[Any] = []


def run_code(code: Any) -> str:
    """The tool: prints sums."""
    _calls.append(code)
    found = _SUM.fullmatch(str(code))
    return f"{int(found[1]) + int(found[2])}\n" if found else "Error: only sums\n"


def main(package: str, ways: dict[str, Lead]) -> None:
    """Play a step in each way, against the service that the command line names, and print what was done.

    Args:
        package: Whose client this is.
        ways: How the rollouts of a step are led, by name; a step for each.
    """
    assert importlib.util.find_spec("rl") is None, "a client has nothing of Turnwise"
    address, num_calls = sys.argv[1], {}
    for way, lead in ways.items():
        step = call(f"{address}/v1/status")["step"]
        asked = [
            (rollout, question)
            for question in (f"What is {i} + 2?" for i in range(NUM_GROUPS))
            for rollout in call(f"{address}/v1/groups", {"prompt": question, "n": NUM_ROLLOUTS})["rollouts"]
        ]
        with ThreadPoolExecutor(len(asked)) as threads:
            list(threads.map(lambda own, lead=lead: lead(*own), asked))
        for place, (rollout, _) in enumerate(asked):  # what is rewarded does not matter, but rewards must differ
            call(f"{address}/rollouts/{rollout['id']}/reward", {"reward": place % NUM_ROLLOUTS})
        num_calls[way] = len(_calls)
        _calls.clear()
        status = call(f"{address}/v1/status?step={step + 1}&timeout=200")
        assert (status["state"], status["step"]) == ("sampling", step + 1), (way, status)
    version = importlib.metadata.version(package)
    print(json.dumps({"package": package, "version": version, "num_calls": num_calls}))


def call(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the service; its errors are raised."""
    text = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, text, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.load(answer))
