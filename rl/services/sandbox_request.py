"""The body of `POST /run_code`, checked: SandboxFusion's fields, with numbers also as strings."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

LANGUAGES = ("python", "bash")
"""What can be run."""
_LONGEST_TIMEOUT_S = 3600.0
_SMALLEST_MEMORY_MB, _LARGEST_MEMORY_MB = 64, 1 << 20


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


def parse_request(body: Any) -> RunRequest:
    """Check a request's body. Unknown fields are ignored.

    Args:
        body: Decoded JSON.

    Returns:
        The request, with SandboxFusion's defaults for what is missing.

    Raises:
        RequestError: A field is missing or wrong; the text names it.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    code, language = body.get("code"), body.get("language")
    if not isinstance(code, str):
        raise RequestError(f"code: must be a text, got {code!r:.50}")
    if language not in LANGUAGES:
        raise RequestError(f"language: got {language!r:.50}, must be one of {', '.join(LANGUAGES)}")
    memory = _number(body, "memory_limit_MB", -1.0)
    if memory <= 0:
        memory = 1024.0
    files, fetch = body.get("files") or {}, body.get("fetch_files") or []
    if not isinstance(files, dict) or not isinstance(fetch, list):
        raise RequestError("files: must be an object of base64 by path, and fetch_files a list of paths")
    timeout = _number(body, "run_timeout", 10.0)
    if not 0 < timeout <= _LONGEST_TIMEOUT_S:
        raise RequestError(f"run_timeout: must be above 0 and at most {_LONGEST_TIMEOUT_S:g} s, got {timeout:g}")
    _number(body, "compile_timeout", 10.0)  # nothing is compiled yet; a wrong value is still told
    return RunRequest(
        code=code,
        language=language,
        stdin=_text(body.get("stdin")),
        run_timeout=timeout,
        memory_limit_mb=int(min(max(memory, _SMALLEST_MEMORY_MB), _LARGEST_MEMORY_MB)),
        files={_path(name): _base64(name, content) for name, content in files.items() if content is not None},
        fetch_files=tuple(_path(name) for name in fetch),
    )


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


def _text(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise RequestError(f"stdin: must be a text, got {value!r:.50}")
    return value.encode("utf-8", "replace")


def _path(name: Any) -> str:
    """A path inside the program's directory, else a `RequestError`."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise RequestError(f"files: a path must be a text, got {name!r:.50}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
        raise RequestError(
            f"files: '{name:.100}' leads out of the program's directory; use a relative path without '..'"
        )
    return name


def _base64(name: str, content: Any) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RequestError(f"files: '{name:.100}' is not base64, {error}") from error
