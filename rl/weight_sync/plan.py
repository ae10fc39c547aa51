"""What a published set of weights is: where each tensor lies in a safetensors file, and a checksum of them all.

The checksum is the sum, modulo 2^128, of one digest for each tensor, and a digest covers the tensor's name. So it does
not depend on the order of the tensors or on how they are spread over files, and the checksums of shards simply add up.

Digests are of values, not of bits: zeros of either sign and subnormal numbers count as +0, because an engine that
multiplies them with one (see `rl.inference.worker_extension`) may lose just that.
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
"""Bytes at the start of each file for the length and the JSON of the header, padded with spaces: tensors can be
written behind it before all their names are known."""

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
    """Where one tensor lies in a file."""

    name: str
    dtype: str
    """As safetensors spells it: F32, BF16 or F16."""
    shape: tuple[int, ...]
    start: int
    """Bytes from the end of the header."""
    end: int


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as safetensors does.

    Raises:
        WeightSyncError: It is none that weights are published in.
    """
    if dtype not in _DTYPE_NAMES:
        raise WeightSyncError(
            f"weight sync: cannot publish {dtype}. Publish one of {', '.join(map(str, _DTYPE_NAMES))}."
        )
    return _DTYPE_NAMES[dtype]


def encode_header(entries: Iterable[TensorEntry], *, version: int) -> bytes:
    """Lay out the first `HEADER_BYTES` of a safetensors file.

    Args:
        entries: In the order their bytes follow each other, without gaps.
        version: The policy version, kept in the file's metadata.

    Raises:
        WeightSyncError: So many tensors that the header does not fit.

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
            f"weight sync: the header takes {len(text)} bytes of {room}. Spread the model over more pipeline stages."
        )
    return room.to_bytes(8, "little") + text.ljust(room)


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest tensors independently of their order.

    Args:
        tensors: Names and values, on any device, of float32, bfloat16 or float16.

    Returns:
        32 hexadecimal digits.
    """
    return _as_text(sum(tensor_digest(name, tensor) for name, tensor in tensors))


def join_checksums(checksums: Iterable[str]) -> str:
    """The checksum of disjoint sets of tensors from those of each."""
    return _as_text(sum(int(c, 16) for c in checksums))


def tensor_digest(name: str, tensor: Tensor) -> int:
    """128 bits of BLAKE2b over a tensor's name, dtype, shape and values.

    Args:
        name: Its Hugging Face name.
        tensor: Of float32, bfloat16 or float16; zeros and subnormals all count as +0.
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
