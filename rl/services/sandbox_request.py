"""The bodies of the sandbox's requests, checked: SandboxFusion's fields, with numbers also as strings."""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

LANGUAGES = ("python", "bash", "cpp", "nodejs")
"""What can be run; the last two where a compiler or node is installed."""
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
        raise RequestError(f"code: must be a text, got {code!r:.50}")
    if language not in LANGUAGES:
        raise RequestError(f"language: got {language!r:.50}, must be one of {', '.join(LANGUAGES)}")
    session_id = _session_id(body.get("session_id"))
    files, fetch_files = _files(body)
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
        raise RequestError(f"cells: must be a list of texts, got {cells!r:.50}")
    if body.get("kernel", "python3") != "python3":
        raise RequestError(f"kernel: got {body['kernel']!r:.50}, must be python3")
    has_limit = _number(body, "cell_timeout", 0.0) != 0.0
    files, fetch_files = _files(body)
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
        raise RequestError(f"{key}: must be a number, got {value!r:.50}")
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
        raise RequestError(f"session_id: must be up to 128 letters, digits and ._:- , got {value!r:.50}")
    return value


def _text(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise RequestError(f"stdin: must be a text, got {value!r:.50}")
    return value.encode("utf-8", "replace")


def _files(body: dict[str, Any]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    files, fetch_files = body.get("files") or {}, body.get("fetch_files") or []
    if not isinstance(files, dict) or not isinstance(fetch_files, list):
        raise RequestError("files: must be an object of base64 by path, and fetch_files a list of paths")
    given = {_path(name): _base64(name, content) for name, content in files.items() if content is not None}
    return given, tuple(_path(name) for name in fetch_files)


def _path(name: Any) -> str:
    """A path inside the program's directory, else a `RequestError`."""
    if not isinstance(name, str) or not name or "\0" in name or not _is_unicode(name):
        raise RequestError(f"files: a path must be a text, got {name!r:.50}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
        raise RequestError(
            f"files: '{name:.100}' leads out of the program's directory; use a relative path without '..'"
        )
    return name


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can spell and no file name can hold."""
    return text == text.encode("utf-8", "replace").decode()


def _base64(name: str, content: Any) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RequestError(f"files: '{name:.100}' is not base64, {error}") from error
