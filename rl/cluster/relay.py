"""Copies published weights into shared memory of other machines, through Ray's object store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from rl.cluster.health import get_all
from rl.cluster.nodes import on_node
from rl.types import WeightUpdate

_PIECE_BYTES = 256 << 20
"""Bytes in one object; several are in flight at once."""
_TIMEOUT_S = 600.0
_REMOVE_TIMEOUT_S = 10.0


def relay(update: WeightUpdate, nodes: Iterable[str]) -> dict[str, WeightUpdate]:
    """Copy the files of a publish to every machine that has an engine.

    Each piece of a file is read once, and Ray sends it to every machine that lacks it. A copy is in a subfolder of
    the original's folder, named after the node; the next publish overwrites it.

    Args:
        update: As published; `nodes` names each file's machine.
        nodes: Ray's ids of the engines' nodes.

    Returns:
        For each node, the update that its engines load.

    Raises:
        RolloutError: A machine could not write its copy in time.
    """
    updates: dict[str, WeightUpdate] = {}
    pieces: dict[tuple[int, int], ray.ObjectRef] = {}
    writes: list[ray.ObjectRef] = []
    for node in sorted(set(nodes)):
        paths = list(update.paths)
        for number, (path, source, size) in enumerate(zip(update.paths, update.nodes, update.num_bytes, strict=True)):
            if source == node:
                continue
            paths[number] = str(Path(path).parent / node / Path(path).name)
            for start in range(0, size, _PIECE_BYTES):
                if (number, start) not in pieces:
                    pieces[number, start] = _read.options(scheduling_strategy=on_node(source)).remote(
                        path, start, _PIECE_BYTES
                    )
                write = _write.options(scheduling_strategy=on_node(node))
                writes.append(write.remote(paths[number], start, size, pieces[number, start]))
        updates[node] = replace(update, paths=tuple(paths))
    get_all(writes, what="copying weights to other machines", timeout_s=_TIMEOUT_S)
    return updates


def remove_folder(directory: Path, nodes: Iterable[str]) -> None:
    """Remove a folder of published weights on other machines; an unresponsive one keeps it until its next run."""
    refs = [_remove.options(scheduling_strategy=on_node(node)).remote(str(directory)) for node in nodes]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=_REMOVE_TIMEOUT_S)


@ray.remote(num_cpus=0)
def _read(path: str, start: int, num_bytes: int) -> np.ndarray:
    return np.fromfile(path, dtype=np.uint8, count=num_bytes, offset=start)


@ray.remote(num_cpus=0)
def _write(path: str, start: int, size: int, piece: np.ndarray) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(file, size)
        view, offset = piece.data, start
        while view:
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(file)


@ray.remote(num_cpus=0)
def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
