"""The actor on a CUDA device against a plain update on the CPU, in float32 and in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MicroBatch
from rl.config.schema import Config, Device
from rl.weight_sync.shared_memory import publish, read_tensors
from tests.gpu.cuda import NEEDS_BFLOAT16, NEEDS_CUDA, make_model, needs, relative_error

pytestmark = [NEEDS_CUDA, needs("megatron")]


def cuda_config(folder: Path, *, bf16: bool) -> Config:
    from tests.update_case import update_config

    config = update_config(folder)
    config.rl_config.max_packing_token_size = 48
    config.megatron_training.bf16 = bf16
    config.megatron_training.device = Device.CUDA
    return config


def micro_batches(config: Config) -> list[MicroBatch]:
    from tests.update_case import update_samples, with_logprobs

    (mini_batch,) = pack_samples(update_samples(), packing_layout(config, num_data_parallel=1)).mini_batches
    return with_logprobs(mini_batch).micro_batches[0]


def exported(actor: object) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in actor.export_hf_weights()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_update_in_float32_equals_plain_autograd(family: str, tmp_path: Path) -> None:
    from rl.training.actor import Actor
    from tests.update_case import PlainUpdate, update_samples

    config = cuda_config(make_model(tmp_path / family, family), bf16=False)
    expected = PlainUpdate(config)
    loss = expected.step(update_samples())
    with Actor(config) as actor:
        metrics = actor.update(micro_batches(config))
        weights = exported(actor)
    for name, value in loss.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, tensor in expected.weights().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)


@NEEDS_BFLOAT16
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_update_in_bfloat16_equals_plain_autograd_but_for_rounding(family: str, recompute: str, tmp_path: Path) -> None:
    """The packed kernel, bfloat16 with float32 main parameters."""
    from rl.training.actor import Actor
    from tests.update_case import PlainUpdate, _first_gradients, update_samples

    config = cuda_config(make_model(tmp_path / family, family), bf16=True)
    config.actor_config.recompute_granularity = recompute
    expected = PlainUpdate(config)
    loss = expected.step(update_samples())
    clipped = {name: p.grad for name, p in expected.model.named_parameters()}
    scale = max(1.0, loss["actor/grad_norm"] / config.actor_config.clip_grad)
    with Actor(config) as actor:
        metrics = actor.update(micro_batches(config))
        gradients = _first_gradients(actor, metrics["actor/grad_norm"])
    assert metrics["actor/pg_loss"] == pytest.approx(loss["actor/pg_loss"], rel=0.05, abs=0.02)
    assert metrics["actor/entropy"] == pytest.approx(loss["actor/entropy"], rel=0.01)
    assert metrics["actor/grad_norm"] == pytest.approx(loss["actor/grad_norm"], rel=0.1)
    whole = [
        torch.cat([tensors[name].double().cpu().flatten() * factor for name in sorted(clipped)])
        for tensors, factor in ((gradients, 1.0), (clipped, scale))
    ]
    assert relative_error(*whole) < 0.1  # a wrong mask or a head too many would be far more


@NEEDS_BFLOAT16
def test_log_probs_are_bit_identical_so_that_the_first_ratio_is_one(tmp_path: Path) -> None:
    from rl.training.actor import Actor

    config = cuda_config(make_model(tmp_path / "model"), bf16=True)
    micros = micro_batches(config)
    with Actor(config) as actor:
        first, again = (actor.compute_logprobs(micros) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        for micro, old in zip(micros, first, strict=True):
            micro.old_logprobs = old
        metrics = actor.update(micros)
    assert metrics["actor/ppo_kl"] == metrics["actor/pg_clipfrac"] == 0.0


@NEEDS_BFLOAT16
def test_offloading_frees_the_device_and_restores_the_same_bits(tmp_path: Path) -> None:
    from rl.training.actor import Actor

    config = cuda_config(make_model(tmp_path / "model"), bf16=True)
    micros = micro_batches(config)
    with Actor(config) as actor:
        actor.update(micros)
        torch.cuda.synchronize()
        assert actor.optimizer is not None
        weights, state = exported(actor), [t.cpu().clone() for t in actor.optimizer.state_tensors()]
        num_parameters = sum(p.numel() for chunk in actor.chunks for p in chunk.parameters())
        before = torch.cuda.memory_allocated()
        actor.offload()
        assert before - torch.cuda.memory_allocated() >= num_parameters * 18  # 2 + 4 + 12 bytes a parameter
        actor.save_checkpoint(tmp_path / "checkpoint")  # brings everything back
        actor.offload()
        actor.onload()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(actor).items())
        assert all(torch.equal(a.cpu(), b) for a, b in zip(actor.optimizer.state_tensors(), state, strict=True))
        actor.offload()
        metrics = actor.update(micros)
        actor.load_checkpoint(tmp_path / "checkpoint")
        assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(actor).items())
        again = actor.update(micros)
    assert metrics == pytest.approx(again, rel=0.02, abs=1e-3)  # kernels add up in any order


@NEEDS_BFLOAT16
def test_published_weights_are_those_of_the_actor(tmp_path: Path) -> None:
    from rl.training.actor import Actor

    config = cuda_config(make_model(tmp_path / "model"), bf16=True)
    with Actor(config) as actor:
        actor.update(micro_batches(config))
        shard = publish(actor.export_hf_weights(), tmp_path, version=1, with_checksum=True)
        weights = exported(actor)
    found = dict(read_tensors((str(shard.path),), version=1))
    assert found.keys() == weights.keys()
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, weights[name]) for name, tensor in found.items())
