"""Device and host memory of offloaded tensors; needs only torch."""

from __future__ import annotations

import pytest
import torch

from rl.training.offload import HostStash
from tests.gpu.cuda import NEEDS_CUDA

pytestmark = NEEDS_CUDA


def test_stash_frees_device_memory_and_pins_exactly_as_much() -> None:
    tensors = [torch.randn(3_000_001, device="cuda"), torch.randn(5_000_003, device="cuda").bfloat16()]
    gradients = torch.randn(7_000_000, device="cuda")
    before, expected = torch.cuda.memory_allocated(), [t.cpu() for t in tensors]
    stash = HostStash()
    stash.offload(tensors, discard=[gradients])
    torch.cuda.empty_cache()
    freed = 3_000_001 * 4 + 5_000_003 * 2 + 7_000_000 * 4
    assert before - torch.cuda.memory_allocated() == pytest.approx(freed, rel=0.01)
    assert stash.host_bytes == 3_000_001 * 4 + 5_000_003 * 2
    assert stash._arena.is_pinned()
    stash.restore()
    assert all(torch.equal(t.cpu(), e) for t, e in zip(tensors, expected, strict=True))
    assert not gradients.any()
    assert torch.cuda.memory_allocated() == pytest.approx(before, rel=0.01)
    stash.offload(tensors)  # reuses the block
    assert stash.host_bytes == 3_000_001 * 4 + 5_000_003 * 2
    stash.restore()
    stash.close()
    assert stash.host_bytes == 0
