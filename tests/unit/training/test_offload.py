"""Offloading to the host: emptied storages, restored contents, host memory."""

from __future__ import annotations

import torch

from rl.training.offload import HostStash


def test_stash_empties_a_storage_once_and_restores_every_view() -> None:
    whole = torch.arange(6.0)
    first, second = whole[:2], whole[2:].view(2, 2)
    stash = HostStash()
    stash.offload([first, second])
    assert whole.untyped_storage().nbytes() == 0
    assert stash.host_bytes == 24  # six float32
    stash.restore()
    assert torch.equal(whole, torch.tensor([0.0, 1, 2, 3, 4, 5]))
    assert torch.equal(second, torch.tensor([[2.0, 3], [4, 5]]))
    assert stash.is_empty


def test_stash_stores_tensors_of_any_dtype_in_one_block_of_exact_size() -> None:
    tensors = [torch.tensor([1, 2, 3], dtype=torch.uint8), torch.tensor([1.5, -2.0]), torch.tensor([0.25]).bfloat16()]
    before = [t.clone() for t in tensors]
    stash = HostStash()
    stash.offload(tensors)
    assert stash.host_bytes == 3 + 8 + 2
    stash.restore()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_stash_restores_zeros_for_discarded_tensors_and_reserves_no_memory_for_them() -> None:
    kept, discarded = torch.ones(2), torch.ones(3)
    stash = HostStash()
    stash.offload([kept], discard=[discarded])
    assert (stash.host_bytes, discarded.untyped_storage().nbytes()) == (8, 0)
    stash.restore()
    assert torch.equal(kept, torch.ones(2))
    assert torch.equal(discarded, torch.zeros(3))


def test_stash_reuses_its_block_and_replaces_it_by_a_larger_one() -> None:
    stash, small, large = HostStash(), torch.ones(4), torch.full((8,), 2.0)
    stash.offload([small])
    stash.restore()
    block = stash._arena.data_ptr()
    stash.offload([small])
    assert stash._arena.data_ptr() == block
    stash.restore()
    stash.offload([small, large])
    assert stash.host_bytes == 48
    stash.restore()
    assert torch.equal(small, torch.ones(4))
    assert torch.equal(large, torch.full((8,), 2.0))
    stash.close()
    assert stash.host_bytes == 0


def test_stash_without_tensors_is_empty() -> None:
    stash = HostStash()
    stash.offload([], discard=[torch.empty(0)])
    assert stash.is_empty
    stash.restore()
