"""The manifest of a checkpoint: each file with its size and checksum, to find what is cut off, changed or missing.

    {"format": 1, "sha256": "60303ae2...", "files": {"model.safetensors": {"size": 538090408, "sha256": "9f86d081..."}}}

The first checksum is that of `files`, so that damage of the manifest itself is not taken for damage of another file.

SHA-256 is the fastest function of the standard library's `hashlib` where the processor has instructions for it, and
`sha256sum` computes it too. CRC-32 takes half the time, but is no check for a copy that someone else made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from rl.config.model_folder import MANIFEST_FILE, replacement
from rl.training.sync import sync_file, sync_folder

_FORMAT = 1
_MAX_THREADS = 8
_Listing = tuple[tuple[str, int, int], ...]
"""Name, bytes and time of the last change of each file."""


def seal(folder: Path) -> None:
    """Write the manifest of all files, and wait until files, manifest and folders are on the disk.

    Args:
        folder: A checkpoint whose files are all written. Renaming it afterwards is the caller's.

    Raises:
        OSError: A file cannot be read, or the disk is full.
    """
    names = [name for name, _, _ in _listing(folder) if name != MANIFEST_FILE]
    with ThreadPoolExecutor(_num_threads()) as pool:
        entries = dict(zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True))
    manifest = folder / MANIFEST_FILE
    content = {"format": _FORMAT, "sha256": _digest(entries), "files": entries}
    manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync_file(manifest)
    for place, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(place))


def has_manifest(checkpoint: Path) -> bool:
    """Whether the checkpoint has one; those of earlier versions have none."""
    return (checkpoint / MANIFEST_FILE).is_file()


def manifest_damages(checkpoint: Path) -> tuple[str, ...]:
    """Compare every file of a checkpoint with its manifest; files that the manifest does not name are left alone.

    A second call reads nothing again, as long as sizes and times of the files are the same.

    Returns:
        For each damaged or missing file, its path, what is wrong with it and what to do.
    """
    advice = replacement(checkpoint)
    return tuple(
        f"{checkpoint / name}: {reason}. {advice}" for name, reason in _damages(checkpoint, _listing(checkpoint))
    )


@lru_cache(maxsize=64)
def _damages(checkpoint: Path, listing: _Listing) -> tuple[tuple[str, str], ...]:
    """Name and reason of each damaged file."""
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return ((MANIFEST_FILE, f"damaged ({error!r})"),)
    if manifest.get("format") != _FORMAT:
        return ((MANIFEST_FILE, f"its format must be {_FORMAT}, as of this version, got {manifest.get('format')}"),)
    if manifest.get("sha256") != _digest(files):
        return ((MANIFEST_FILE, "damaged (its SHA-256 is not that of its list of files)"),)
    sizes = {name: size for name, size, _ in listing}
    with ThreadPoolExecutor(_num_threads()) as pool:
        reasons = pool.map(lambda name: _reason(checkpoint / name, sizes.get(name), *expected[name]), expected)
    return tuple((name, reason) for name, reason in zip(expected, reasons, strict=True) if reason)


def _reason(path: Path, size: int | None, expected_size: int, sha256: str) -> str:
    """What is wrong with a file; empty if nothing is."""
    if size is None:
        return f"missing ({MANIFEST_FILE} lists it)"
    if size != expected_size:
        return f"damaged (must have {expected_size} bytes, got {size})"
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"damaged ({error})"
    return "" if digest == sha256 else f"damaged (its SHA-256 is not that of {MANIFEST_FILE})"


def _digest(entries: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, once its content is on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"size": stream.tell(), "sha256": digest}


def _listing(folder: Path) -> _Listing:
    return tuple(sorted(_walk(folder)))


def _walk(folder: Path) -> Iterator[tuple[str, int, int]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_file():
                found = path.stat()
                yield path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns


def _num_threads() -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1)
