"""The actor on a CUDA device against the same update written out on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl.config.schema import Device
from rl.data.packing import pack_samples, packing_layout
from tests.tiny import make_tiny_model
from tests.update_case import PlainUpdate, update_config, update_samples, with_logprobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_update_on_cuda_equals_plain_autograd(family: str, tmp_path: Path) -> None:
    from rl.training.actor import Actor

    config = update_config(make_tiny_model(tmp_path / family, family, num_layers=2))
    config.rl_config.max_packing_token_size = 48
    samples = update_samples()
    expected = PlainUpdate(config)
    loss = expected.step(samples)
    config.megatron_training.device = Device.CUDA
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    with Actor(config) as actor:
        metrics = actor.update(with_logprobs(mini_batch).micro_batches[0])
        weights = {name: tensor.cpu() for name, tensor in actor.export_hf_weights()}
    for name, value in loss.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, tensor in expected.weights().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)
