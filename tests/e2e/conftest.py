"""A tiny model with prompts, and one that has learned to call the tool: made once for all tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.commands import finish, metrics_of, start
from tests.tiny import make_tiny_model


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("e2e"))


def make_workspace(folder: Path) -> Path:
    """A folder with `model`, `prompts.parquet` and `demonstrations.jsonl`."""
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


@pytest.fixture(scope="session")
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


def demonstration(i: int) -> dict[str, object]:
    call = {"type": "function", "function": {"name": "code_interpreter", "arguments": {"code": f"print({i} + 2)"}}}
    conversation = [
        {"role": "user", "content": f"What is {i} + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"{i + 2}\n"},
        {"role": "assistant", "content": f"\\boxed{{{i + 2}}}"},
    ]
    return {"messages": conversation, "ground_truth": str(i + 2), "data_source": "sums"}
