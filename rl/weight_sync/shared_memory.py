"""Weight transport through a folder in shared memory (/dev/shm), one safetensors file per pipeline stage.

Each publish overwrites the files in place, so their memory is allocated once. This is safe, because a publish ends only
after every engine has loaded it. Engines check the version in the header.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rl.errors import WeightSyncError
from rl.weight_sync.plan import HEADER_BYTES, TensorEntry, checksum, dtype_name, encode_header, join_checksums


@dataclass(slots=True, frozen=True)
class Shard:
    """A file written by `publish`."""

    path: Path
    num_bytes: int
    checksum: str | None
    """Checksum of this file's tensors; `rl.weight_sync.plan.join_checksums` combines those of all files."""


def publish(
    tensors: Iterator[tuple[str, Tensor]],
    directory: Path,
    *,
    version: int,
    shard: int = 0,
    dtype: torch.dtype | None = None,
    with_checksum: bool = False,
) -> Shard:
    """Write tensors to `<directory>/weights-<shard>.safetensors`; an existing file is overwritten.

    Args:
        tensors: Hugging Face names and values, on any device; the iterator is exhausted.
        directory: Folder in shared memory; created if missing.
        version: The policy version.
        shard: Number of the pipeline stage.
        dtype: Convert tensors to it; None keeps their dtypes.
        with_checksum: Compute the checksum.

    Returns:
        Path, size and checksum.

    Raises:
        WeightSyncError: The shared memory is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"weights-{shard}.safetensors"
    entries: list[TensorEntry] = []
    checksums: list[str] = []
    offset = 0
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for name, tensor in tensors:
            value = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
            num_bytes = value.numel() * value.element_size()
            entries.append(TensorEntry(name, dtype_name(value.dtype), tuple(value.shape), offset, offset + num_bytes))
            _write(file, memoryview(value.view(-1).view(torch.uint8).numpy()), HEADER_BYTES + offset, path)
            offset += num_bytes
            if with_checksum:
                checksums.append(checksum([(name, value)]))
        os.ftruncate(file, HEADER_BYTES + offset)
        _write(file, memoryview(encode_header(entries, version=version)), 0, path)
    finally:
        os.close(file)
    return Shard(path, HEADER_BYTES + offset, join_checksums(checksums) if with_checksum else None)


def read_tensors(paths: tuple[str, ...], *, version: int) -> Iterator[tuple[str, Tensor]]:
    """Yield published tensors in the order they were written, as views of the mapped files without copies.

    Args:
        paths: Files of one publish.
        version: Expected policy version of the files.

    Raises:
        WeightSyncError: A file is missing or damaged, has another version, or repeats a name of another file.
    """
    seen: set[str] = set()
    for path in paths:
        with _open(path) as file:
            found = (file.metadata() or {}).get("version")
            if found != str(version):
                raise WeightSyncError(
                    f"{path}: must have version {version}, got {found}. Wait with a publish until all engines have "
                    "loaded the previous one."
                )
            for name in file.offset_keys():
                if name in seen:
                    raise WeightSyncError(
                        f"{path}: '{name}' was published twice. Export each tensor on one stage only."
                    )
                seen.add(name)
                yield name, file.get_tensor(name)


def _write(file: int, view: memoryview, offset: int, path: Path) -> None:
    while view:
        try:
            written = os.pwrite(file, view, offset)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise WeightSyncError(
                f"{path}: shared memory is full after {offset} bytes. Make /dev/shm larger (docker: --shm-size)."
            ) from error
        view, offset = view[written:], offset + written


@contextlib.contextmanager
def _open(path: str) -> Iterator[safe_open]:
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise WeightSyncError(f"{path}: cannot be read, got '{error}'. Publish again.") from error
    with file:
        yield file
