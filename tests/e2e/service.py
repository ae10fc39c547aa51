"""Starts `rl serve` on a tiny model."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.commands import start


def serve(workspace: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    """Start the service with steps of two groups; its run is named."""
    return start(
        "serve", workspace, name, "megatron_training.data_path=", "megatron_training.eval_data_path=null",
        "megatron_training.global_batch_size=2", "megatron_training.train_iters=100",
        "megatron_training.save_interval=2", "rl_config.rollout_function=service", "rl_config.tool_config_path=null",
        "rl_config.verifier_function=[environment]", "rl_config.verifier_weight=[1.0]", "serve_config.port=0",
        *overrides,
    )  # fmt: skip


def address_of(process: subprocess.Popen[str]) -> str:
    """Wait until it listens."""
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if found := re.search(r"serving at (http://[^/]+)/v1", line):
            return found[1]
    raise AssertionError("".join(told))


def engine_counts(workspace: Path, name: str) -> tuple[int, int]:
    """Requests that vLLM runs, as of its last step, and the tokens that it has sampled; needs `prometheus_port=0`."""
    log = (workspace / "runs" / name / "logs" / "driver.log").read_text()
    address = re.findall(r"http://127\.0\.0\.1:\d+/metrics", log)[-1]
    counts = {"vllm:num_requests_running": 0.0, "vllm:generation_tokens_total": 0.0}
    with urlopen(address, timeout=60) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                if sample.name in counts:
                    counts[sample.name] += sample.value
    running, sampled = counts.values()
    return int(running), int(sampled)
