"""`rl serve` with the real engine and the real actor: clients train a model; killed, the service goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from psutil import pid_exists, process_iter

from tests.e2e.commands import TIMEOUT_S, ended, steps_of
from tests.e2e.serve_client import ask_briefly, leave_in_mid_answer, play, wait_for_step
from tests.e2e.service import address_of, engine_counts, serve

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


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

    second = serve(workspace, "served-again", f"megatron_training.resume={run}", "megatron_training.prometheus_port=0")
    with ended(second):
        address = address_of(second)
        asyncio.run(play(address, ["sum-3-b"], 3))
        assert asyncio.run(wait_for_step(address, 3))["step"] == 3
        for is_streamed in (False, True):
            _, before = engine_counts(workspace, "served-again")
            asyncio.run(leave_in_mid_answer(address, is_streamed=is_streamed))
            running = 1
            while running:  # vLLM tells it at its next step; Ray cancels again after 2 s what had not yet begun
                asyncio.run(ask_briefly(address))
                running, sampled = engine_counts(workspace, "served-again")
            assert sampled - before < 4 * 400  # of four answers with 400 numbers each: the engine gave them up
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
    assert not [p for p in process_iter(["cmdline"]) if any(str(workspace) in part for part in p.info["cmdline"] or [])]
