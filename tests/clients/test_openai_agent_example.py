"""examples/openai_agent against a live service: a process of its own, over HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, TIMEOUT_S, ended, start, steps_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


def test_the_agent_trains_the_model_of_a_service(workspace: Path, unused_tcp_port: int) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}"
    service = start(
        "serve",
        workspace,
        "agent-service",
        f"serve_config.port={unused_tcp_port}",
        "megatron_training.data_path=''",  # clients bring the prompts
        "megatron_training.eval_data_path={}",
        "rl_config.rollout_function=service",
        "rl_config.tool_config_path=null",
        "rl_config.verifier_function=[environment,'tests/e2e/length_reward.py:sampled_digits']",
        "rl_config.verifier_weight=[1.0,1.0]",
        "generate_config.sampling_config.max_tokens=40",
    )
    with ended(service):
        wait_for(address, service)
        agent = subprocess.run(
            [
                *(sys.executable, "-m", "examples.openai_agent.agent", "--service", address, "--steps", "2"),
                *("--prompts", str(workspace / "prompts.parquet"), "--global-batch-size", "4", "--samples", "4"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert agent.returncode == 0, agent.stderr
    assert re.findall(r"step (\d): mean reward \d\.\d{3}", agent.stdout) == ["1", "2"]
    steps = steps_of(workspace, "agent-service")
    assert len(steps) == 2
    for metrics in steps:
        # Log-probs agree, so the actor was trained on the very tokens that the engine saw.
        assert metrics["training/rollout_probs_diff_max"] < 1e-3
        assert metrics["actor/grad_norm"] > 0


def wait_for(address: str, service: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        assert service.poll() is None, service.communicate()[0]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the service did not start")
