"""Storages that wait on the host: what is emptied, what comes back, and how much host memory it takes."""

from __future__ import annotations

import torch

from rl.training.offload import HostStash


def test_stash_empties_a_storage_once_and_brings_every_view_back() -> None:
    whole = torch.arange(6.0)
    first, second = whole[:2], whole[2:].view(2, 2)
    stash = HostStash()
    stash.take([first, second])
    assert whole.untyped_storage().nbytes() == 0
    assert stash.host_bytes == 24  # six float32
    stash.restore()
    assert torch.equal(whole, torch.tensor([0.0, 1, 2, 3, 4, 5]))
    assert torch.equal(second, torch.tensor([[2.0, 3], [4, 5]]))
    assert stash.is_empty


def test_stash_keeps_tensors_of_any_dtype_in_one_block_of_their_own_size() -> None:
    tensors = [torch.tensor([1, 2, 3], dtype=torch.uint8), torch.tensor([1.5, -2.0]), torch.tensor([0.25]).bfloat16()]
    before = [t.clone() for t in tensors]
    stash = HostStash()
    stash.take(tensors)
    assert stash.host_bytes == 3 + 8 + 2
    stash.restore()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_stash_brings_zeros_for_what_is_forgotten_and_gives_it_no_room() -> None:
    kept, forgotten = torch.ones(2), torch.ones(3)
    stash = HostStash()
    stash.take([kept], forgotten=[forgotten])
    assert (stash.host_bytes, forgotten.untyped_storage().nbytes()) == (8, 0)
    stash.restore()
    assert torch.equal(kept, torch.ones(2))
    assert torch.equal(forgotten, torch.zeros(3))


def test_stash_takes_its_block_again_and_a_larger_one_where_more_comes() -> None:
    stash, small, large = HostStash(), torch.ones(4), torch.full((8,), 2.0)
    stash.take([small])
    stash.restore()
    block = stash._arena.data_ptr()
    stash.take([small])
    assert stash._arena.data_ptr() == block
    stash.restore()
    stash.take([small, large])
    assert stash.host_bytes == 48
    stash.restore()
    assert torch.equal(small, torch.ones(4))
    assert torch.equal(large, torch.full((8,), 2.0))
    stash.close()
    assert stash.host_bytes == 0


def test_stash_of_nothing_is_empty() -> None:
    stash = HostStash()
    stash.take([], forgotten=[torch.empty(0)])
    assert stash.is_empty
    stash.restore()
