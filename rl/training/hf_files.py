"""Hugging Face model folders on disk: reading tensors by name, and writing safetensors with their index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl.config.model_folder import replacement
from rl.errors import CheckpointError, ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".index.json"
)  # fmt: skip
_STATE_FILES = ("run_state.json", "trainer_state.json", "kl_coefficient.json")
"""Of the checkpoint that a run may have started from: they say nothing of the one it writes."""

SourceFiles = Mapping[str, bytes]
"""Names and contents of what a model folder holds beside weights: config, tokenizer, chat template."""


def read_source_files(folder: Path) -> SourceFiles:
    """Keep what checkpoints copy of a model folder, which may be gone when they are written.

    Raises:
        ModelError: The folder cannot be read.
    """
    try:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if _is_copied(path)}
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error}). {replacement(folder)}") from error


def damaged_files(*folders: Path) -> Iterator[str]:
    """Look at every file of some folders, also at those that are not needed to go on.

    Safetensors say how long they are, and JSON ends with the bracket it began with: a file that was cut off, or filled
    with zeros, is found without reading the tensors.

    Args:
        folders: Model folders, or others with such files; one that is missing has none.

    Yields:
        For each damaged file what is wrong with it, and what to do.
    """
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        try:
            if path.suffix == ".safetensors":
                with _opened(path):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix in (".txt", ".model", ".jinja") and path.stat().st_size == 0:
                raise ValueError("it is empty")
        except ModelError as error:
            yield str(error)
        except (OSError, ValueError) as error:
            yield f"{path}: damaged ({error}). {replacement(path.parent)}"


def open_tensors(folder: Path, stack: ExitStack) -> Callable[[str], Tensor]:
    """Open a folder's safetensors for reading one whole tensor at a time, on the CPU.

    Args:
        folder: With model.safetensors, or several files and their index.
        stack: Closes the files at its end.

    Returns:
        A function from a name to its tensor, which raises ModelError for a name that is not there.

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
        opened[path] = stack.enter_context(_opened(folder / path))
        if not files or len(paths) == 1:
            files.update(dict.fromkeys(opened[path].keys(), path))

    def read(name: str) -> Tensor:
        try:
            return opened[files[name]].get_tensor(name)
        except (KeyError, SafetensorError) as error:
            raise ModelError(f"{folder}: the tensor {name} is missing or unreadable. {replacement(folder)}") from error

    return read


def save_hf_model(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source_folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 4 << 30,
) -> Path:
    """Write a model folder that `from_pretrained` and vLLM read; it appears whole or not at all.

    Args:
        folder: Must not exist.
        tensors: Hugging Face names and whole tensors; at most `max_shard_size` bytes are held at a time.
        source_folder: Its config, tokenizer, chat template and generation settings are copied.
        dtype: Of the files; None keeps each tensor's.
        max_shard_size: Bytes of one file.

    Returns:
        `folder`.

    Raises:
        CheckpointError: `folder` exists already.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already. Give another folder; nothing is overwritten.")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    index = write_shards(partial, tensors, dtype=dtype, max_shard_size=max_shard_size)
    finish_hf_folder(partial, index, source=read_source_files(source_folder), dtype=dtype)
    os.replace(partial, folder)
    return folder


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    stage: int = 0,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 4 << 30,
) -> dict[str, str]:
    """Write tensors into safetensors files of a folder, `max_shard_size` bytes each.

    Args:
        folder: Exists.
        tensors: Names and whole tensors; copied to the CPU one by one.
        stage: The pipeline stage that writes; part of the file names, so that stages can write side by side.
        dtype: Of the files; None keeps each tensor's.
        max_shard_size: Bytes; a larger tensor stands alone.

    Returns:
        The file of each tensor, for `finish_hf_folder`.
    """
    index: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    num_bytes = num_files = 0

    def flush() -> None:
        nonlocal num_bytes, num_files
        if pending:
            name = f"model-{stage:03d}-{num_files:05d}.safetensors"
            save_file(pending, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(pending, name))
            pending.clear()
            num_bytes, num_files = 0, num_files + 1

    for name, tensor in tensors:
        # A copy: parts of one parameter share its storage, which safetensors refuses.
        whole = tensor.detach().to("cpu", dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        if num_bytes + whole.nbytes > max_shard_size:
            flush()
        pending[name] = whole
        num_bytes += whole.nbytes
    flush()
    return index


def finish_hf_folder(
    folder: Path, index: dict[str, str], *, source: SourceFiles, dtype: torch.dtype | None = None
) -> None:
    """Write the index of the shards, or rename a single one, and put everything but weights beside them.

    Args:
        folder: With the shards of all stages.
        index: The file of each tensor, of all stages together.
        source: Of the model that was trained.
        dtype: Recorded in config.json; None leaves what is there.
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


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error}). {replacement(path.parent)}") from error


def _is_copied(path: Path) -> bool:
    is_weight = path.name.endswith(_WEIGHT_SUFFIXES) or path.name in _STATE_FILES
    return path.is_file() and not is_weight and not path.name.startswith(".")


def _read_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not an index of safetensors ({error!r}). {replacement(path.parent)}") from error
