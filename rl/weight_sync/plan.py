"""The format of published weights: positions of tensors in a safetensors file, and a checksum over all tensors.

The checksum is the sum of one digest per tensor, modulo 2^128, and a digest covers the tensor's name. So it does not
depend on the order of the tensors or their distribution over files, and the checksums of shards add up.

A digest covers values, not bits: zeros of either sign and subnormal numbers count as +0, because an engine that
multiplies them by one (see `rl.inference.worker_extension`) may not preserve them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.errors import WeightSyncError

HEADER_BYTES = 1 << 20
"""Bytes at the start of each file for the header (its length and JSON, padded with spaces). The fixed size allows to
write tensors before all names are known."""

_CHUNK_ELEMENTS = 1 << 22
_MODULUS = 1 << 128
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_EXPONENT_MASKS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}


@dataclass(slots=True, frozen=True)
class TensorEntry:
    """Position of one tensor in a file."""

    name: str
    dtype: str
    """Name in safetensors: F32, BF16 or F16."""
    shape: tuple[int, ...]
    start: int
    """Bytes from the end of the header."""
    end: int


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in safetensors.

    Raises:
        WeightSyncError: Weights of this dtype cannot be published.
    """
    if dtype not in _DTYPE_NAMES:
        raise WeightSyncError(
            f"weight sync: cannot publish {dtype}. Publish one of {', '.join(map(str, _DTYPE_NAMES))}."
        )
    return _DTYPE_NAMES[dtype]


def encode_header(entries: Iterable[TensorEntry], *, version: int) -> bytes:
    """Encode the first `HEADER_BYTES` of a safetensors file.

    Args:
        entries: In the order of their bytes, without gaps.
        version: The policy version, stored in the file's metadata.

    Raises:
        WeightSyncError: There are too many tensors for the header.

    Source: the safetensors format, which allows trailing spaces.
    """
    header: dict[str, object] = {"__metadata__": {"version": str(version)}}
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    room = HEADER_BYTES - 8
    if len(text) > room:
        raise WeightSyncError(
            f"weight sync: the header must fit into {room} bytes, got {len(text)}. Use more pipeline stages."
        )
    return room.to_bytes(8, "little") + text.ljust(room)


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Compute the checksum of tensors; their order does not matter.

    Args:
        tensors: Names and values, on any device, float32, bfloat16 or float16.

    Returns:
        32 hexadecimal digits.
    """
    return _as_text(sum(tensor_digest(name, tensor) for name, tensor in tensors))


def join_checksums(checksums: Iterable[str]) -> str:
    """Combine the checksums of disjoint sets of tensors."""
    return _as_text(sum(int(c, 16) for c in checksums))


def tensor_digest(name: str, tensor: Tensor) -> int:
    """Compute 128 bits of BLAKE2b over a tensor's name, dtype, shape and values.

    Args:
        name: Hugging Face name.
        tensor: float32, bfloat16 or float16; all zeros and subnormals count as +0.
    """
    kind = dtype_name(tensor.dtype)
    digest = hashlib.blake2b(f"{name}:{kind}:{tuple(tensor.shape)}".encode(), digest_size=16)
    integer, exponent = _EXPONENT_MASKS[tensor.dtype]
    for chunk in tensor.detach().reshape(-1).split(_CHUNK_ELEMENTS):
        bits = chunk.cpu().view(integer)
        normal = torch.where((bits & exponent) == 0, torch.zeros((), dtype=integer), bits)
        digest.update(normal.numpy().data)
    return int.from_bytes(digest.digest(), "big")


def _as_text(total: int) -> str:
    return f"{total % _MODULUS:032x}"
