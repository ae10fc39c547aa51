"""The sandbox is killed while a training step uses it, and comes back: nothing is lost, and the metrics tell."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, TIMEOUT_S, ended, finish, start, steps_of

pytestmark = pytest.mark.timeout(3 * TIMEOUT_S)

OUTAGE_S = 10.0
NUM_TRAJECTORIES = 16
"""Trajectories of one step of configs/tiny.yaml."""


class Sandbox:
    """A sandbox on a port of its own, which can be killed and started again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "rl", "sandbox", "--port", str(self.port), "--workers", "4"]
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def num_running(self) -> float | None:
        """Programs under way; None where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return None
        return float(next(line for line in lines if line.startswith("sandbox_running ")).split()[1])


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    server = Sandbox()
    yield server
    server.kill()


def wait_until(is_met: Callable[[], bool], run: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_met():
        assert run is None or run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sandbox_killed_in_a_training_step_and_restarted_loses_no_trajectory(
    workspace: Path, cold_started: Path, sandbox: Sandbox
) -> None:
    tools = workspace / "outage_tools.yaml"
    shipped = (ROOT / "configs/tools/retool_config.yaml").read_text()
    shipped = shipped.replace("rl.tools.retool.ReTool", "tests.e2e.slow_interpreter.SlowInterpreter")
    shipped = shipped.replace("queue_timeout: 60", f"queue_timeout: {TIMEOUT_S}")
    tools.write_text(shipped.replace("embedded", f"http://127.0.0.1:{sandbox.port}/run_code", 1))
    wait_until(lambda: sandbox.num_running() is not None)
    run = start(
        "train", workspace, "outage", f"actor_config.load={cold_started}", f"rl_config.tool_config_path={tools}",
        f"rl_config.trajectory_timeout={TIMEOUT_S}",
    )  # fmt: skip
    with ended(run):
        wait_until(lambda: len(steps_of(workspace, "outage")) == 1, run)
        wait_until(lambda: (sandbox.num_running() or 0) > 0, run)
        sandbox.kill()
        time.sleep(OUTAGE_S)
        sandbox.start()
        finish(run)

    calm, hit = steps_of(workspace, "outage")
    for metrics in (calm, hit):
        assert metrics["rollout/num_trajectories"] == NUM_TRAJECTORIES
        assert metrics["training/masked_trajectories"] == metrics["tools/unavailable"] == 0.0
        assert metrics["stop_reason/tool_unavailable"] == metrics["stop_reason/deadline"] == 0.0
        assert metrics["actor/grad_norm"] > 0
    tool = "tools/code_interpreter"
    assert calm[f"{tool}/failed_attempts"] == calm[f"{tool}/retries"] == calm[f"{tool}/breaker_waits"] == 0.0
    assert hit[f"{tool}/failed_attempts"] == hit[f"{tool}/retries"] >= 5.0  # as many as open the circuit breaker
    assert hit[f"{tool}/breaker_waits"] > 0.0
    assert hit[f"{tool}/outage_s/max"] >= OUTAGE_S
    lines = (workspace / "runs" / "outage" / "trajectories" / "step_000002.jsonl").read_text().splitlines()
    trajectories = [json.loads(line) for line in lines]
    assert all(t["score"] is not None for t in trajectories)
    results = [r for t in trajectories for turn in t["turns"] for r in turn["results"]]
    assert any(r["status"] == "ok" and r["queue_s"] > OUTAGE_S - 2 for r in results)
    log = "".join(path.read_text() for path in (workspace / "runs" / "outage" / "logs").glob("rollout*"))
    assert "Calls wait until its service answers" in log and "its service answers again" in log
