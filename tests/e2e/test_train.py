"""The main path with the real vLLM, Megatron, Ray and sandbox: cold start, DAPO, resume, nothing left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from rl.services.embedded import EmbeddedSandbox
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e2e")
    make_tiny_model(folder / "model", "qwen2", tied=True, num_heads=2, num_kv_heads=1)  # vLLM wants 32 a head
    rows = [
        {
            "messages": [{"role": "user", "content": f"What is {i} + 2?"}],
            "ground_truth": str(i + 2),
            "data_source": "sums",
        }
        for i in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    lines = [json.dumps(demonstration(i)) for i in range(12)]
    (folder / "demonstrations.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def demonstration(i: int) -> dict[str, object]:
    call = {"type": "function", "function": {"name": "code_interpreter", "arguments": {"code": f"print({i} + 2)"}}}
    conversation = [
        {"role": "user", "content": f"What is {i} + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"{i + 2}\n"},
        {"role": "assistant", "content": f"\\boxed{{{i + 2}}}"},
    ]
    return {"messages": conversation, "ground_truth": str(i + 2), "data_source": "sums"}


def start(command: str, workspace: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    settings = {
        "actor_config.load": workspace / "model",
        "megatron_training.data_path": workspace / "prompts.parquet",
        "megatron_training.test_data_path": workspace / "prompts.parquet",
        "megatron_training.output_dir": workspace / "runs",
        "megatron_training.run_name": name,
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rl",
            command,
            "--config-dir",
            "tests/e2e/configs",
            "--config-name",
            "tiny",
            *arguments,
            *overrides,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end; whatever happened, leave no process behind."""
    family = psutil.Process(process.pid).children(recursive=True)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
        for member in [*family, process]:
            member.kill()
        raise
    assert process.returncode == 0, output
    return output


def metrics_of(workspace: Path, name: str) -> list[dict[str, float]]:
    lines = (workspace / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def cold_started(workspace: Path) -> Path:
    """A model that has learned one conversation by heart, so that it often calls the tool."""
    finish(
        start(
            "sft", workspace, "sft",
            f"megatron_training.data_path={workspace / 'demonstrations.jsonl'}",
            "megatron_training.train_iters=48", "megatron_training.save_interval=48", "actor_config.lr=0.003",
        )
    )  # fmt: skip
    losses = [m["actor/loss"] for m in metrics_of(workspace, "sft")]
    assert losses[-1] < 0.5 < losses[0]
    return workspace / "runs" / "sft" / "checkpoints" / "step_000048"


def descendants() -> set[int]:
    return {p.pid for p in psutil.Process(os.getpid()).children(recursive=True)}


def test_two_dapo_steps_and_resume_repeat_the_uninterrupted_run(workspace: Path, cold_started: Path) -> None:
    model = f"actor_config.load={cold_started}"
    before = descendants()
    finish(start("train", workspace, "whole", model))
    assert descendants() == before
    assert not [p for p in Path("/dev/shm").glob("turnwise-*") if not psutil.pid_exists(int(p.name.split("-")[1]))]

    steps = [m for m in metrics_of(workspace, "whole") if "timing_s/step" in m]
    assert len(steps) == 2
    for metrics in steps:
        assert metrics["training/rollout_probs_diff_max"] < 1e-3
        assert metrics["actor/pg_clipfrac"] == 0.0
        assert metrics["tools/code_interpreter/calls"] > 0
        assert metrics["actor/grad_norm"] > 0
    trajectories = [
        json.loads(line)
        for path in sorted((workspace / "runs" / "whole" / "trajectories").glob("step*"))
        for line in path.read_text().splitlines()
    ]
    assert len(trajectories) == 2 * 4 * 4
    assert any("42" in json.dumps(t) for t in trajectories)

    final = workspace / "runs" / "whole" / "checkpoints" / "step_000002"
    trained = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32).state_dict()
    begun = AutoModelForCausalLM.from_pretrained(cold_started, dtype=torch.float32).state_dict()
    assert trained.keys() == begun.keys()
    assert any(not torch.equal(trained[name], begun[name]) for name in trained)

    first = workspace / "runs" / "whole" / "checkpoints" / "step_000001"
    finish(start("train", workspace, "resumed", model, f"megatron_training.resume={first}"))
    resumed = [m for m in metrics_of(workspace, "resumed") if "timing_s/step" in m][-1]
    for name in ("critic/score/mean", "actor/pg_loss", "actor/grad_norm", "response_length/mean"):
        assert resumed[name] == pytest.approx(steps[1][name], rel=1e-4), name


def test_engine_on_another_machine_repeats_the_run_on_one(workspace: Path, cold_started: Path) -> None:
    """Two Ray nodes stand for two machines: one trains, the other generates, and weights are copied between them."""
    one_machine = [m for m in metrics_of(workspace, "whole") if "timing_s/step" in m]
    tools = workspace / "tools.yaml"
    with EmbeddedSandbox() as sandbox, two_ray_nodes() as address:
        tools.write_text((ROOT / "configs/tools/retool_config.yaml").read_text().replace("embedded", sandbox.url, 1))
        finish(
            start(
                "train", workspace, "apart", f"actor_config.load={cold_started}",
                f"rl_config.ray_address={address}", "rl_config.use_integrated_worker=false",
                f"rl_config.tool_config_path={tools}",
            )
        )  # fmt: skip
    apart = [m for m in metrics_of(workspace, "apart") if "timing_s/step" in m]
    for ours, theirs in zip(apart, one_machine, strict=True):
        for name in ("critic/score/mean", "actor/pg_loss", "actor/grad_norm", "response_length/mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


@contextmanager
def two_ray_nodes() -> Iterator[str]:
    size = {"num_cpus": 2, "object_store_memory": 256 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        cluster.add_node(**size)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_interrupt_ends_every_process_within_seconds(workspace: Path) -> None:
    before = descendants()
    process = start("train", workspace, "interrupted", "megatron_training.train_iters=1000")
    deadline = time.monotonic() + TIMEOUT_S
    checkpoint = workspace / "runs" / "interrupted" / "checkpoints" / "step_000002"
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    start_s = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start_s < 20
    assert process.returncode == 130
    assert f"megatron_training.resume={workspace / 'runs' / 'interrupted'}" in output.replace("\n", "")
    assert descendants() == before
