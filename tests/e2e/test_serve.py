"""`rl serve` with the real engine and the real actor: clients train a model; killed, the service goes on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from psutil import pid_exists, process_iter

from tests.e2e.commands import TIMEOUT_S, ended, start, steps_of
from tests.e2e.serve_client import play, wait_for_step

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


def serve(workspace: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    return start(
        "serve", workspace, name, "megatron_training.data_path=", "megatron_training.eval_data_path=null",
        "megatron_training.global_batch_size=2", "megatron_training.train_iters=100",
        "megatron_training.save_interval=2", "rl_config.rollout_function=service", "rl_config.tool_config_path=null",
        "rl_config.verifier_function=[environment]", "rl_config.verifier_weight=[1.0]", "serve_config.port=0",
        *overrides,
    )  # fmt: skip


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if found := re.search(r"serving at (http://[^/]+)/v1", line):
            return found[1]
    raise AssertionError("".join(told))


def test_clients_train_a_model_and_a_killed_service_goes_on_with_what_it_acknowledged(workspace: Path) -> None:
    first = serve(workspace, "served")
    with ended(first):
        address = address_of(first)
        for step in (1, 2):
            asyncio.run(play(address, [f"sum-{step}-a", f"sum-{step}-b"], 3))
            assert asyncio.run(wait_for_step(address, step))["state"] == "sampling"
        status = asyncio.run(play(address, ["sum-3-a"], 3))  # half a batch, after the checkpoint of step 2
        assert (status["step"], status["open_rollouts"]) == (2, 0)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(TIMEOUT_S)
    run = workspace / "runs" / "served"
    assert [path.name for path in (run / "journal").glob("*.json")] == ["00000004.json"]

    second = serve(workspace, "served-again", f"megatron_training.resume={run}")
    with ended(second):
        address = address_of(second)
        asyncio.run(play(address, ["sum-3-b"], 3))
        assert asyncio.run(wait_for_step(address, 3))["step"] == 3
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 130
    steps = steps_of(workspace, "served-again")
    assert [int(m["step"]) for m in steps] == [1, 2, 3]
    for metrics in steps:
        assert metrics["training/rollout_probs_diff_max"] < 1e-3
        assert metrics["stop_reason/finished"] + metrics["stop_reason/length"] == 1
    third = (workspace / "runs" / "served-again" / "trajectories" / "step_000003.jsonl").read_text()
    assert ("sum-3-a" in third, "sum-3-b" in third) == (True, True)
    for pid in (first.pid, second.pid):
        assert not pid_exists(pid)
    assert not [p for p in process_iter(["cmdline"]) if any("served" in part for part in p.info["cmdline"] or [])]
