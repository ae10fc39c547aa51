import hashlib

import pytest
import torch

from rl.errors import WeightSyncError
from rl.weight_sync.plan import HEADER_BYTES, TensorEntry, checksum, encode_header, join_checksums, tensor_digest

ONES = ("a.weight", torch.tensor([[1.0, 2.0]]))
TWOS = ("b.weight", torch.tensor([3.0], dtype=torch.bfloat16))


def test_tensor_digest_is_blake2b_of_name_dtype_shape_and_bytes():
    little_endian = bytes.fromhex("0000803f00000040")  # 1.0f, 2.0f
    expected = hashlib.blake2b(b"a.weight:F32:(1, 2)" + little_endian, digest_size=16).digest()
    assert tensor_digest(*ONES) == int.from_bytes(expected, "big")


@pytest.mark.parametrize(
    "other",
    [
        ("a.bias", torch.tensor([[1.0, 2.0]])),
        ("a.weight", torch.tensor([1.0, 2.0])),
        ("a.weight", torch.tensor([[2.0, 1.0]])),
        ("a.weight", torch.tensor([[1.0, 2.0000002]])),
        ("a.weight", torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)),
    ],
)
def test_tensor_digest_depends_on_name_shape_order_value_and_dtype(other):
    assert tensor_digest(*other) != tensor_digest(*ONES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensor_digest_counts_zeros_and_subnormals_alike(dtype):
    tiny = torch.finfo(dtype).tiny
    zeros = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    others = torch.tensor([-0.0, tiny / 4, 1.0], dtype=dtype)
    assert tensor_digest("w", zeros) == tensor_digest("w", others)
    smallest = torch.tensor([0.0, tiny, 1.0], dtype=dtype)
    assert tensor_digest("w", zeros) != tensor_digest("w", smallest)


def test_checksum_does_not_depend_on_order_or_sharding():
    whole = checksum([ONES, TWOS])
    assert whole == checksum([TWOS, ONES])
    assert whole == join_checksums([checksum([TWOS]), checksum([ONES])])
    assert len(whole) == 32


def test_checksum_of_a_view_is_that_of_its_copy():
    square = torch.arange(9.0).reshape(3, 3)
    assert checksum([("w", square.t())]) == checksum([("w", square.t().contiguous())])


def test_encode_header_pads_to_its_size_and_rejects_more():
    header = encode_header([TensorEntry("w", "F32", (2,), 0, 8)], version=3)
    assert len(header) == HEADER_BYTES
    assert header[:8] == (HEADER_BYTES - 8).to_bytes(8, "little")
    assert header[8:].rstrip() == (
        b'{"__metadata__":{"version":"3"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    with pytest.raises(WeightSyncError, match="header must fit"):
        encode_header([TensorEntry("w" * HEADER_BYTES, "F32", (2,), 0, 8)], version=3)


def test_tensor_digest_rejects_other_dtypes():
    with pytest.raises(WeightSyncError, match=r"torch\.int64"):
        tensor_digest("w", torch.tensor([1]))
