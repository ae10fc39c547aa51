"""A whole run on one GPU that actor and engine share: Ray, vLLM, Megatron, sandbox, checkpoint, resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.cuda import NEEDS_BFLOAT16, needs

pytestmark = [NEEDS_BFLOAT16, needs("vllm", "megatron", "ray")]

ON_CUDA = (
    "megatron_training.device=cuda", "megatron_training.bf16=true", "generate_config.dtype=bfloat16",
    "generate_config.gpu_memory_utilization=0.3", "rl_config.init_kl_coef=0.01",
)  # fmt: skip


def test_two_steps_in_turns_and_resume(tmp_path: Path) -> None:
    from tests.e2e.commands import finish, metrics_of, start, steps_of
    from tests.e2e.conftest import make_workspace

    workspace = make_workspace(tmp_path)
    finish(start("train", workspace, "whole", *ON_CUDA))
    steps = steps_of(workspace, "whole")
    assert len(steps) == 2
    for metrics in steps:
        assert metrics["training/rollout_probs_diff_mean"] < 0.05
        assert metrics["actor/pg_clipfrac"] == 0.0
        assert metrics["actor/grad_norm"] > 0
    assert len([m for m in metrics_of(workspace, "whole") if "val-core/all/acc/mean@1" in m]) == 2
    first = workspace / "runs" / "whole" / "checkpoints" / "step_000001"
    finish(start("train", workspace, "resumed", *ON_CUDA, f"megatron_training.resume={first}"))
    (resumed,) = steps_of(workspace, "resumed")[-1:]
    assert resumed["actor/pg_loss"] == pytest.approx(steps[1]["actor/pg_loss"], abs=0.1)
