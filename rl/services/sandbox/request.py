"""The bodies of the sandbox's requests, checked: SandboxFusion's fields, with numbers also as strings."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rl.services.json_body import show
from rl.services.sandbox.box import MAX_BYTES

PROGRAM_FILES = {"python": "main.py", "bash": "main.sh", "cpp": "main.cpp", "nodejs": "main.js"}
"""Languages, and the file that a program's code is put into; the last two where a compiler or node is installed."""
_MAX_FILES = 8192
"""And folders. A box has room for twice as many: the program makes some of its own."""
_PAGE_BYTES = 4096
_LONGEST_NAME, _LONGEST_PATH = 255, 1024
_MAX_FETCHED, _MAX_FETCHED_BYTES = 1000, 48 << 10
"""The latter of their names in JSON, which go to a session in one message."""
_LONGEST_CODE = 8 << 20
_LONGEST_TIMEOUT_S = 3600.0
_SMALLEST_MEMORY_MB, _LARGEST_MEMORY_MB = 64, 1 << 20
_DEFAULT_MEMORY_MB = 1024
_SESSION_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestError(ValueError):
    """A field is missing or wrong; answered with HTTP 422."""


@dataclass(slots=True, frozen=True)
class RunRequest:
    """One program to run."""

    code: str
    language: str
    stdin: bytes
    run_timeout: float
    """Seconds, above 0."""
    memory_limit_mb: int
    files: dict[str, bytes]
    """By path relative to the program's directory."""
    fetch_files: tuple[str, ...]
    """Paths to send back."""
    compile_timeout: float = 10.0
    """Seconds, above 0, of the compiler of a language that has one."""
    queue_timeout: float = 10.0
    """Seconds that the client is ready to wait beyond the two time-outs above."""
    session_id: str | None = None
    """The interpreter that goes on; None for a fresh one."""
    session_idle_timeout: float = 600.0
    """Seconds without a program after which the session ends."""


@dataclass(slots=True, frozen=True)
class NotebookRequest:
    """Cells to run one after the other in one interpreter."""

    cells: tuple[str, ...]
    cell_timeout: float | None
    """Seconds of each cell; None for no limit but the total."""
    total_timeout: float
    """Seconds of all cells."""
    memory_limit_mb: int
    queue_timeout: float
    files: dict[str, bytes]
    fetch_files: tuple[str, ...]


def parse_request(body: Any) -> RunRequest:
    """Check the body of `POST /run_code`. Unknown fields are ignored.

    Args:
        body: Decoded JSON.

    Returns:
        The request, with SandboxFusion's defaults for what is missing.

    Raises:
        RequestError: A field is missing or wrong; the text names it.
    """
    body = _object(body)
    code, language = body.get("code"), body.get("language")
    if not isinstance(code, str):
        raise RequestError(f"code: must be a text, got {show(code)}")
    if len(code) > _LONGEST_CODE:
        raise RequestError(f"code: has more than {_LONGEST_CODE >> 20} Mi letters; put data into files")
    if not isinstance(language, str) or language not in PROGRAM_FILES:
        raise RequestError(f"language: got {show(language)}, must be one of {', '.join(PROGRAM_FILES)}")
    session_id = _session_id(body.get("session_id"))
    files, fetch_files = _files(body, None if session_id is not None else PROGRAM_FILES[language])
    if session_id is not None and language != "python":
        raise RequestError(f"session_id: a session runs python, got {language}; leave it out")
    return RunRequest(
        code=code,
        language=language,
        stdin=_text(body.get("stdin")),
        run_timeout=_seconds(body, "run_timeout", 10.0),
        compile_timeout=_seconds(body, "compile_timeout", 10.0),
        queue_timeout=_seconds(body, "queue_timeout", 10.0),
        memory_limit_mb=_memory(body),
        files=files,
        fetch_files=fetch_files,
        session_id=session_id,
        session_idle_timeout=_seconds(body, "session_idle_timeout", 600.0),
    )


def parse_notebook(body: Any) -> NotebookRequest:
    """Check the body of `POST /run_jupyter`. Unknown fields are ignored.

    Args:
        body: Decoded JSON.

    Returns:
        The request, with SandboxFusion's defaults for what is missing.

    Raises:
        RequestError: A field is missing or wrong; the text names it.
    """
    body = _object(body)
    cells = body.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, str) for cell in cells):
        raise RequestError(f"cells: must be a list of texts, got {show(cells)}")
    if body.get("kernel", "python3") != "python3":
        raise RequestError(f"kernel: got {show(body['kernel'])}, must be python3")
    if sum(map(len, cells)) > _LONGEST_CODE:
        raise RequestError(f"cells: have more than {_LONGEST_CODE >> 20} Mi letters; put data into files")
    has_limit = _number(body, "cell_timeout", 0.0) != 0.0
    files, fetch_files = _files(body, PROGRAM_FILES["python"])
    return NotebookRequest(
        cells=tuple(cells),
        cell_timeout=_seconds(body, "cell_timeout", 0.0) if has_limit else None,
        total_timeout=_seconds(body, "total_timeout", 45.0),
        memory_limit_mb=_memory(body),
        queue_timeout=_seconds(body, "queue_timeout", 10.0),
        files=files,
        fetch_files=fetch_files,
    )


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _number(body: dict[str, Any], key: str, default: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{key}: must be a number, got {show(value)}")
    return number


def _seconds(body: dict[str, Any], key: str, default: float) -> float:
    seconds = _number(body, key, default)
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        raise RequestError(f"{key}: must be above 0 and at most {_LONGEST_TIMEOUT_S:g} s, got {seconds:g}")
    return seconds


def _memory(body: dict[str, Any]) -> int:
    """MiB; SandboxFusion's -1 means that none was given."""
    memory = _number(body, "memory_limit_MB", -1.0)
    return int(min(max(memory, _SMALLEST_MEMORY_MB), _LARGEST_MEMORY_MB)) if memory > 0 else _DEFAULT_MEMORY_MB


def _session_id(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not _SESSION_ID.fullmatch(value)):
        raise RequestError(f"session_id: must be up to 128 letters, digits and ._:- , got {show(value)}")
    return value


def _text(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise RequestError(f"stdin: must be a text, got {show(value)}")
    return value.encode("utf-8", "replace")


def _files(body: dict[str, Any], program_file: str | None) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files to write by path, and the paths to read as they were asked for.

    Args:
        body: Of the request.
        program_file: Where its code goes; None in a session.
    """
    files, fetch_files = body.get("files") or {}, body.get("fetch_files") or []
    if not isinstance(files, dict) or not isinstance(fetch_files, list):
        raise RequestError("files: must be an object of base64 by path, and fetch_files a list of paths")
    given: dict[str, bytes] = {}
    for name, content in files.items():
        if content is not None:
            path = _path("files", name)
            if path in given:
                raise RequestError(f"files: '{path:.100}' is given twice, in two spellings")
            given[path] = _base64(name, content)
    _check_files(given, program_file)
    for name in fetch_files:
        _path("fetch_files", name)
    if len(fetch_files) > _MAX_FETCHED or len(json.dumps(fetch_files)) > _MAX_FETCHED_BYTES:
        limit = f"{_MAX_FETCHED} paths and {_MAX_FETCHED_BYTES >> 10} KiB of them"
        raise RequestError(f"fetch_files: may be at most {limit}, got {len(fetch_files)} paths")
    return given, tuple(fetch_files)


def _check_files(files: dict[str, bytes], program_file: str | None) -> None:
    """See that files can lie beside each other and beside the code, and that all have room."""
    names = set(files) if program_file is None else {*files, program_file}
    folders = {str(folder) for name in names for folder in _folders(name)}
    if both := sorted(names & folders):
        raise RequestError(f"files: '{both[0]:.100}' is a file and a folder of another one")
    num_bytes = sum(-(-len(content) // _PAGE_BYTES) * _PAGE_BYTES for content in files.values())
    if num_bytes > MAX_BYTES or len(names) + len(folders) > _MAX_FILES:
        limit = f"{MAX_BYTES >> 20} MiB in pages of {_PAGE_BYTES >> 10} KiB, and {_MAX_FILES} files and folders"
        raise RequestError(f"files: may take at most {limit}, got {num_bytes >> 20} MiB in {len(files)} files")


def _folders(name: str) -> Iterable[PurePosixPath]:
    return list(PurePosixPath(name).parents)[:-1]  # the last is the program's directory itself


def _path(field: str, name: Any) -> str:
    """A path inside the program's directory in its shortest spelling, else a `RequestError`."""
    if not isinstance(name, str) or not name or "\0" in name or not _is_unicode(name):
        raise RequestError(f"{field}: a path must be a text of Unicode, not empty and without zeros, got {show(name)}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
        raise RequestError(
            f"{field}: '{name:.100}' leads out of the program's directory; use a relative path without '..'"
        )
    if len(name.encode()) > _LONGEST_PATH or max(len(part.encode()) for part in path.parts) > _LONGEST_NAME:
        limit = f"{_LONGEST_NAME} bytes of each name and {_LONGEST_PATH} of all"
        raise RequestError(f"{field}: '{name:.40}...' is too long; a path may have {limit}")
    return str(path)


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can spell and no file name can hold."""
    return text == text.encode("utf-8", "replace").decode()


def _base64(name: str, content: Any) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RequestError(f"files: '{name:.100}' is not base64, {error}") from error
