"""Clients as their packages are, in environments of their own, train a model through one service.

`scripts/test_clients.sh` runs this. Each client plays a step in each of its ways; what was trained is what was sampled.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import python_of
from tests.e2e.commands import steps_of

pytestmark = pytest.mark.timeout(1800)

FOLDER = Path(__file__).resolve().parent
_CLIENT_TIMEOUT_S = 600


@dataclass(frozen=True)
class Client:
    """A client program and what it needs."""

    program: str
    requirement: str
    at_once: int
    """Token sequences of a rollout that is led by agents at once; every other way keeps one."""


CLIENTS = {
    "openai": Client("openai_client.py", "openai==3.57.0", 4),
    "openai-agents": Client("agents_client.py", "openai-agents==0.24.0", 2),
    "anthropic": Client("anthropic_client.py", "anthropic==2.14.0", 3),
    "litellm": Client("litellm_client.py", "litellm==1.110.2", 4),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_trains_on_the_tokens_that_were_sampled(
    name: str, workspace: Path, address: str, tmp_path: Path, report: list[str]
) -> None:
    client = CLIENTS[name]
    python = python_of(name, client.requirement)
    num_before = len(steps_of(workspace, "clients"))
    played = run_program(python, client.program, address, tmp_path)
    steps = steps_of(workspace, "clients")[num_before:]
    assert len(steps) == len(played["num_calls"]) >= 4
    for (way, num_calls), metrics in zip(played["num_calls"].items(), steps, strict=True):
        sequences = metrics["rollout/sequences/mean"], metrics["rollout/sequences/max"]
        share, gap = metrics["rollout/as_sampled_share"], metrics["training/rollout_probs_diff_max"]
        report.append(
            f"{name} {played['version']}, {way}: {metrics['num_turns/mean']:.1f} turns, {num_calls} tool calls, "
            f"{sequences[0]:.2f} sequences, as sampled {share:.3f}, difference of probabilities {gap:.1e}"
        )
        assert num_calls > 0 or way != "required", way
        assert (share, metrics["serve/lost_rollouts"]) == (1, 0), way
        assert gap < 1e-3, way
        assert metrics["actor/grad_norm"] > 0, way
        assert sequences == ((client.at_once,) * 2 if way == "at once" else (1, 1)), way


def run_program(python: str, program: str, address: str, folder: Path) -> dict[str, Any]:
    """Run a client program in its environment, where nothing of Turnwise is importable; returns what it printed."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OPENAI", "ANTHROPIC"))}
    own["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it looks for a list of prices in the network otherwise
    done = subprocess.run(
        [python, str(FOLDER / program), address],
        cwd=folder, env=own, capture_output=True, text=True, timeout=_CLIENT_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return dict(json.loads(done.stdout.splitlines()[-1]))
