"""The bodies of the sandbox's requests: SandboxFusion's fields, where numbers may also be strings."""

from __future__ import annotations

import base64
import binascii
import json
import reprlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, FailFast, Field, PlainValidator, StrictStr, TypeAdapter

from rl.services.json_body import RequestError, check
from rl.services.sandbox.box import MAX_BYTES
from rl.services.sandbox.languages import LANGUAGES, LanguageName

_MAX_FILES = 8192
"""Files and folders. A box has room for twice as many, because the program makes some too."""
_PAGE_BYTES = 4096
_LONGEST_NAME, _LONGEST_PATH = 255, 1024
_MAX_FETCHED, _MAX_FETCHED_BYTES = 1000, 48 << 10
"""The second limit is for the names in JSON, which go to a session in one message."""
_LONGEST_CODE = 8 << 20
_LONGEST_TIMEOUT_S = 3600.0
_SMALLEST_MEMORY_MB, _LARGEST_MEMORY_MB, _DEFAULT_MEMORY_MB = 64.0, float(1 << 20), 1024.0


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    return value


def _memory_mb(number: float) -> float:
    return min(max(number, _SMALLEST_MEMORY_MB), _LARGEST_MEMORY_MB) if number > 0 else _DEFAULT_MEMORY_MB


def _check_code_length(code: str) -> str:
    if len(code) > _LONGEST_CODE:
        raise ValueError(f"has more than {_LONGEST_CODE >> 20} Mi characters; put data into files")
    return code


def _encode(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"must be a string, got {reprlib.repr(text):.50}")
    return text.encode("utf-8", "replace")


def _decode_files(files: Any) -> dict[str, bytes]:
    files = files or {}
    if not isinstance(files, dict):
        raise ValueError("must be an object of base64 strings by path")
    decoded: dict[str, bytes] = {}
    for name, content in files.items():
        if content is not None:
            path = _normalize_path(name)
            if path in decoded:
                raise ValueError(f"'{path:.100}' is given twice, in two spellings")
            decoded[path] = _decode_base64(name, content)
    return decoded


def _check_fetched(paths: Any) -> tuple[str, ...]:
    """Keep the spelling of the request: it is the one that the answer uses."""
    paths = paths or []
    if not isinstance(paths, list):
        raise ValueError("must be a list of paths")
    for path in paths:
        _normalize_path(path)
    if len(paths) > _MAX_FETCHED or len(json.dumps(paths)) > _MAX_FETCHED_BYTES:
        limit = f"{_MAX_FETCHED} paths and {_MAX_FETCHED_BYTES >> 10} KiB of them"
        raise ValueError(f"may be at most {limit}, got {len(paths)} paths")
    return tuple(paths)


Number = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Seconds = Annotated[Number, Field(gt=0, le=_LONGEST_TIMEOUT_S)]
MemoryMb = Annotated[Number, AfterValidator(_memory_mb), Field(alias="memory_limit_MB")]
"""MiB. SandboxFusion's -1 means the default."""
Code = Annotated[StrictStr, AfterValidator(_check_code_length)]
Files = Annotated[dict[str, bytes], PlainValidator(_decode_files)]
"""Contents by path, relative to the program's folder."""
Paths = Annotated[tuple[str, ...], PlainValidator(_check_fetched)]


@dataclass(slots=True, frozen=True)
class RunRequest:
    """The body of `POST /run_code`, with SandboxFusion's defaults."""

    code: Code
    language: LanguageName
    stdin: Annotated[bytes, PlainValidator(_encode)] = b""
    run_timeout: Seconds = 10.0
    memory_limit_mb: MemoryMb = _DEFAULT_MEMORY_MB
    files: Files = field(default_factory=dict)
    fetch_files: Paths = ()
    compile_timeout: Seconds = 10.0
    queue_timeout: Seconds = 10.0
    """How long the client waits in addition to the two timeouts above."""
    session_id: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")] | None = None
    """The interpreter to continue in; None for a fresh one."""
    session_idle_timeout: Seconds = 600.0
    """The session ends after this time without a program."""


@dataclass(slots=True, frozen=True)
class NotebookRequest:
    """The body of `POST /run_jupyter`, with SandboxFusion's defaults. All cells run in one interpreter."""

    cells: Annotated[list[StrictStr], FailFast()]
    kernel: Literal["python3"] = "python3"
    cell_timeout: Annotated[Number, Field(ge=0, le=_LONGEST_TIMEOUT_S)] = 0.0
    """Seconds for each cell; 0 for no limit but the total."""
    total_timeout: Seconds = 45.0
    memory_limit_mb: MemoryMb = _DEFAULT_MEMORY_MB
    queue_timeout: Seconds = 10.0
    files: Files = field(default_factory=dict)
    fetch_files: Paths = ()


_RUN, _NOTEBOOK = TypeAdapter(RunRequest), TypeAdapter(NotebookRequest)


def parse_request(body: Any) -> RunRequest:
    """Check the decoded body of `POST /run_code`. Unknown fields are ignored.

    Raises:
        RequestError: A field is missing or wrong; the message names it.
    """
    request = check(_RUN, body)
    if request.session_id is not None and request.language != "python":
        raise RequestError(f"session_id: a session runs python, got {request.language}; leave it out")
    _check_room(request.files, None if request.session_id is not None else LANGUAGES[request.language].file)
    return request


def parse_notebook(body: Any) -> NotebookRequest:
    """Check the decoded body of `POST /run_jupyter`; see `parse_request`."""
    request = check(_NOTEBOOK, body)
    if sum(map(len, request.cells)) > _LONGEST_CODE:
        raise RequestError(f"cells: have more than {_LONGEST_CODE >> 20} Mi characters; put data into files")
    _check_room(request.files, LANGUAGES["python"].file)
    return request


def _check_room(files: dict[str, bytes], program_file: str | None) -> None:
    """Check that no file is also a folder, the program's own file included, and that all files fit."""
    names = set(files) if program_file is None else {*files, program_file}
    folders = {str(folder) for name in names for folder in list(PurePosixPath(name).parents)[:-1]}
    if both := sorted(names & folders):
        raise RequestError(f"files: '{both[0]:.100}' is a file and also the folder of another file")
    num_bytes = sum(-(-len(content) // _PAGE_BYTES) * _PAGE_BYTES for content in files.values())
    if num_bytes > MAX_BYTES or len(names) + len(folders) > _MAX_FILES:
        limit = f"{MAX_BYTES >> 20} MiB in pages of {_PAGE_BYTES >> 10} KiB, and {_MAX_FILES} files and folders"
        raise RequestError(f"files: may take at most {limit}, got {num_bytes >> 20} MiB in {len(files)} files")


def _normalize_path(name: Any) -> str:
    """The shortest spelling of a path inside the program's folder."""
    if not isinstance(name, str) or not name or "\0" in name or not _is_unicode(name):
        raise ValueError(f"a path must be a non-empty Unicode string without zeros, got {reprlib.repr(name):.50}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
        raise ValueError(f"'{name:.100}' leads out of the program's folder; use a relative path without '..'")
    if len(name.encode()) > _LONGEST_PATH or max(len(part.encode()) for part in path.parts) > _LONGEST_NAME:
        limit = f"{_LONGEST_NAME} bytes in each name and {_LONGEST_PATH} in all"
        raise ValueError(f"'{name:.40}...' is too long; a path may have {limit}")
    return str(path)


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can express and a file name cannot."""
    return text == text.encode("utf-8", "replace").decode()


def _decode_base64(name: str, content: Any) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"'{name:.100}' is not base64, {error}") from error
