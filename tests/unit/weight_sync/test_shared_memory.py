import pytest
import torch
from safetensors.torch import load_file

from rl.errors import WeightSyncError
from rl.weight_sync.plan import checksum, join_checksums
from rl.weight_sync.shared_memory import publish, read_tensors


def weights(value: float) -> list[tuple[str, torch.Tensor]]:
    return [("z.weight", torch.full((3, 2), value)), ("a.bias", torch.tensor([value, -value, 0.5]))]


def test_publish_writes_a_safetensors_file_in_the_order_given(tmp_path):
    shard = publish(iter(weights(1.0)), tmp_path, version=1)
    assert shard.path == tmp_path / "weights-0.safetensors"
    assert shard.num_bytes == shard.path.stat().st_size
    found = list(read_tensors((str(shard.path),), version=1))
    assert [name for name, _ in found] == ["z.weight", "a.bias"]
    for (_, sent), (_, arrived) in zip(weights(1.0), found, strict=True):
        assert torch.equal(sent, arrived)
    assert set(load_file(shard.path)) == {"z.weight", "a.bias"}


def test_publish_overwrites_a_longer_file(tmp_path):
    publish(iter([("big", torch.ones(1000))]), tmp_path, version=1)
    shard = publish(iter(weights(2.0)), tmp_path, version=2)
    assert dict(read_tensors((str(shard.path),), version=2))["a.bias"].tolist() == [2.0, -2.0, 0.5]
    assert set(load_file(shard.path)) == {"z.weight", "a.bias"}


def test_publish_converts_and_digests_what_it_wrote(tmp_path):
    shard = publish(iter(weights(0.1)), tmp_path, version=1, dtype=torch.bfloat16, with_checksum=True)
    found = list(read_tensors((str(shard.path),), version=1))
    assert all(t.dtype is torch.bfloat16 for _, t in found)
    assert shard.checksum == checksum(found)
    assert shard.checksum == checksum((n, t.bfloat16()) for n, t in weights(0.1))


def test_publish_accepts_transposed_and_sliced_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    shard = publish(iter([("t", base.t()), ("s", base[:, 1:3])]), tmp_path, version=1)
    found = dict(read_tensors((str(shard.path),), version=1))
    assert torch.equal(found["t"], base.t())
    assert torch.equal(found["s"], base[:, 1:3])


def test_shards_of_two_stages_join(tmp_path):
    first, second = weights(1.0)
    shards = [
        publish(iter([one]), tmp_path, version=1, shard=i, with_checksum=True) for i, one in enumerate((first, second))
    ]
    found = dict(read_tensors(tuple(str(s.path) for s in shards), version=1))
    assert list(found) == ["z.weight", "a.bias"]
    assert join_checksums(s.checksum for s in shards) == checksum([first, second])


def test_read_tensors_rejects_another_version(tmp_path):
    shard = publish(iter(weights(1.0)), tmp_path, version=1)
    with pytest.raises(WeightSyncError, match="must have version 2, got 1"):
        list(read_tensors((str(shard.path),), version=2))


def test_read_tensors_rejects_a_name_published_twice(tmp_path):
    shards = [publish(iter(weights(1.0)), tmp_path, version=1, shard=i) for i in range(2)]
    with pytest.raises(WeightSyncError, match="published twice"):
        list(read_tensors(tuple(str(s.path) for s in shards), version=1))


@pytest.mark.parametrize("content", [None, b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{"])
def test_read_tensors_names_a_missing_or_damaged_file(tmp_path, content):
    path = tmp_path / "weights-0.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightSyncError, match="cannot be read"):
        list(read_tensors((str(path),), version=1))
