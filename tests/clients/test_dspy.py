"""DSPy's optimizers, unmodified, train a tiny model through `rl serve`. Their environments need a package index."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import python_of
from tests.e2e.commands import ROOT, TIMEOUT_S, ended, finish, start, steps_of
from tests.e2e.test_serve import address_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)

CLIENT = "tests/clients/dspy_client.py"
NEWEST = ("dspy-3.4.1", "dspy==3.4.1")
CLIENTS = [
    # environment, what it has, provider, adapter, share of trained samples
    (*NEWEST, "turnwise", "default", 0.4),
    (*NEWEST, "turnwise", "xml", 0.4),
    ("arbor-ai-0.2.17", "dspy==3.4.1|--no-deps arbor-ai==0.2.17", "arbor", "default", 0.4),
    ("dspy-3.0.4", "dspy==3.0.4", "dspy", "default", 0.4),
    ("dspy-2.6.27", "dspy==2.6.27", "dspy", "default", 0.4),
]
NUM_STEPS, NUM_UPDATES = 6, 4  # a step whose groups all earn the same has no update


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    """A service with a model that has learned the forms of DSPy's adapters."""
    demonstrations = workspace / "dspy.jsonl"
    run_client(python_of(*NEWEST), workspace, "demonstrate", str(demonstrations))
    common = [
        "rl_config.prompt_type=empty", "generate_config.max_model_len=1536", "rl_config.max_packing_token_size=4096",
        "megatron_training.eval_data_path=null", "megatron_training.save_interval=1000",
        "rl_config.max_prompt_length=1200", "rl_config.tool_config_path=null",
    ]  # fmt: skip
    finish(
        start(
            "sft", workspace, "forms", *common, f"megatron_training.data_path={demonstrations}",
            "megatron_training.train_iters=160", "megatron_training.global_batch_size=8", "actor_config.lr=0.003",
            "rl_config.multi_turn_enable=false",
        )
    )  # fmt: skip
    (model,) = (workspace / "runs" / "forms" / "checkpoints").iterdir()
    service = start(
        "serve", workspace, "dspy", *common, f"actor_config.load={model}", "megatron_training.data_path=",
        "megatron_training.train_iters=100", "rl_config.rollout_function=service",
        "rl_config.verifier_function=[environment]", "rl_config.verifier_weight=[1.0]", "serve_config.port=0",
    )  # fmt: skip
    with ended(service):
        found = address_of(service)
        threading.Thread(target=service.stdout.read, daemon=True).start()  # so that it can go on to write
        yield f"{found}/v1/ {model.name}"


def run_client(python: str, folder: Path, *arguments: str) -> str:
    environment = {
        "PYTHONPATH": str(ROOT),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DSPY_CACHEDIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [python, CLIENT, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize(("name", "packages", "provider", "adapter", "share"), CLIENTS)
def test_an_optimizer_of_dspy_trains_on_what_was_sampled(
    workspace: Path, address: str, name: str, packages: str, provider: str, adapter: str, share: float
) -> None:
    python = python_of(name, *packages.split("|"))
    run_client(python, workspace, "train", *address.split(), provider, adapter, str(NUM_STEPS))
    steps = last_run(workspace)
    assert len(steps) == NUM_STEPS
    updates = [metrics for metrics in steps if not metrics["training/empty_batch"]]
    assert len(updates) >= NUM_UPDATES
    for metrics in updates:
        assert metrics["actor/grad_norm"] > 0
        # the log-probs are those of the trained tokens; a client may sample a step ahead, from the weights before
        assert metrics["training/rollout_probs_diff_max"] < (0.1 if metrics["serve/staleness"] else 1e-3)
    for metrics in steps:
        assert metrics["serve/trained_as_sampled"] >= share
        assert metrics["serve/arbor/groups"] - metrics["serve/arbor/dropped_groups"] >= 1


def last_run(workspace: Path) -> list[dict[str, float]]:
    """The steps of the training that ended last."""
    newest = max((workspace / "runs").glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return steps_of(workspace, newest.parent.name)
