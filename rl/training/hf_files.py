"""Hugging Face model folders on disk: read tensors by name, write safetensors with their index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl.config.model_folder import STATE_FILES, replacement
from rl.errors import ModelError
from rl.training.sync import sync_file

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".index.json"
)  # fmt: skip

SourceFiles = Mapping[str, bytes]
"""Names and contents of the files in a model folder other than weights: config, tokenizer, chat template."""


def read_source_files(folder: Path) -> SourceFiles:
    """Read the files that checkpoints copy from a model folder. The folder may be gone when a checkpoint is written.

    Raises:
        ModelError: The folder cannot be read.
    """
    try:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if _is_copied(path)}
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error}). {replacement(folder)}") from error


def damaged_files(*folders: Path) -> Iterator[str]:
    """Check every file in some folders, including those that are not needed to resume.

    Safetensors headers record the length of the file, and JSON does not parse if its end is missing. So the check finds
    truncated and zero-filled files without reading the tensors.

    Args:
        folders: Model folders or folders of optimizer state; missing folders are skipped.

    Yields:
        For each damaged file, what is wrong with it and what to do.
    """
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        try:
            if path.suffix == ".safetensors":
                with _open(path):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix in (".txt", ".model", ".jinja") and path.stat().st_size == 0:
                raise ValueError("the file is empty")
        except ModelError as error:
            yield str(error)
        except (OSError, ValueError) as error:
            yield f"{path}: damaged ({error}). {replacement(path.parent)}"


def open_tensors(folder: Path, stack: ExitStack) -> Callable[[str], Tensor]:
    """Open a folder's safetensors to read one whole tensor at a time, on the CPU.

    Args:
        folder: Contains model.safetensors, or several files and their index.
        stack: Closes the files on exit.

    Returns:
        A function from a name to its tensor. It raises ModelError if there is no such tensor.

    Raises:
        ModelError: A file is missing or corrupt.
    """
    files: dict[str, str] = {}
    if (folder / INDEX_NAME).is_file():
        files = _read_index(folder / INDEX_NAME)
    paths = sorted(set(files.values())) or [SINGLE_NAME]
    opened = {}
    for path in paths:
        if not (folder / path).is_file():
            raise ModelError(f"{folder}: {path} is missing; only safetensors are read. {replacement(folder)}")
        opened[path] = stack.enter_context(_open(folder / path))
        if not files or len(paths) == 1:
            files.update(dict.fromkeys(opened[path].keys(), path))

    def read(name: str) -> Tensor:
        try:
            return opened[files[name]].get_tensor(name)
        except (KeyError, SafetensorError) as error:
            raise ModelError(f"{folder}: the tensor {name} is missing or unreadable. {replacement(folder)}") from error

    return read


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    stage: int = 0,
    max_shard_size: int = 4 << 30,
) -> dict[str, str]:
    """Write tensors to safetensors files of up to `max_shard_size` bytes.

    Args:
        folder: Must exist.
        tensors: Names and whole tensors; copied to the CPU one by one.
        stage: Pipeline stage of this rank; part of the file names, so that stages can write to the same folder.
        max_shard_size: Bytes; a larger tensor gets its own file.

    Returns:
        File name of each tensor, for `finish_hf_folder`.
    """
    index: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    num_bytes = num_files = 0

    def flush() -> None:
        nonlocal num_bytes, num_files
        if pending:
            name = f"model-{stage:03d}-{num_files:05d}.safetensors"
            save_file(pending, folder / name, metadata={"format": "pt"})
            sync_file(folder / name)  # the driver may be on another machine, which cannot write what this one holds
            index.update(dict.fromkeys(pending, name))
            pending.clear()
            num_bytes, num_files = 0, num_files + 1

    for name, tensor in tensors:
        # Copy: parts of one parameter share its storage, which safetensors rejects.
        whole = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        if num_bytes + whole.nbytes > max_shard_size:
            flush()
        pending[name] = whole
        num_bytes += whole.nbytes
    flush()
    return index


def finish_hf_folder(
    folder: Path, index: dict[str, str], *, source: SourceFiles, dtype: torch.dtype | None = None
) -> None:
    """Write the index of the shards, or rename a single shard, and add the files other than weights.

    Args:
        folder: Contains the shards of all stages.
        index: File name of each tensor, of all stages together.
        source: From the model folder that training started from.
        dtype: Recorded in config.json; None leaves config.json as it is.
    """
    files = sorted(set(index.values()))
    if len(files) == 1:
        os.replace(folder / files[0], folder / SINGLE_NAME)
    else:
        total = sum((folder / file).stat().st_size for file in files)
        index_content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index_content, indent=2) + "\n")
    for name, content in source.items():
        (folder / name).write_bytes(content)
    if dtype is not None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        path.write_text(json.dumps(config, indent=2) + "\n")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error}). {replacement(path.parent)}") from error


def _is_copied(path: Path) -> bool:
    # State files come from the checkpoint that the run started from and would be wrong in a new one.
    is_excluded = path.name.endswith(_WEIGHT_SUFFIXES) or path.name in STATE_FILES or path.name.startswith(".")
    return path.is_file() and not is_excluded


def _read_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a safetensors index ({error!r}). {replacement(path.parent)}") from error
