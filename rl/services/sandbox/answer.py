"""The sandbox's answers, in SandboxFusion's form."""

from __future__ import annotations

import asyncio
import json
from binascii import b2a_base64
from typing import Any

from rl.services.sandbox.outcome import CompileOutcome, RunOutcome

_PIECE_BYTES = 3 << 18
"""A multiple of three, so that the base64 texts of pieces can be joined."""
_LARGE_BYTES = 256 << 10


def success_or_failure(outcome: RunOutcome, pod_name: str, queue_s: float) -> dict[str, Any]:
    """The answer for a program that was run, without its files.

    Args:
        outcome: The program's outcome.
        pod_name: This machine's name.
        queue_s: Seconds that the request waited for a worker.
    """
    is_compiled = outcome.compile is None or outcome.compile.return_code == 0
    return {
        "status": "Success" if is_compiled and outcome.return_code == 0 else "Failed",
        "message": "",
        "compile_result": None if outcome.compile is None else _result(outcome.compile),
        "run_result": _result(outcome) if is_compiled else None,
        "executor_pod_name": pod_name,
        "queue_time": queue_s,
    }


def sandbox_error(message: str, pod_name: str, queue_s: float) -> dict[str, Any]:
    """The answer for a program that was not run; see `success_or_failure`."""
    return {
        "status": "SandboxError",
        "message": message,
        "compile_result": None,
        "run_result": None,
        "executor_pod_name": pod_name,
        "queue_time": queue_s,
    }


async def encode(answer: dict[str, Any], files: dict[str, bytes]) -> bytes:
    """Write an answer as JSON, a large one in a thread and in pieces, so that it does not block other requests.

    Args:
        answer: The answer without `files`.
        files: Contents by path.
    """
    if sum(map(len, files.values())) < _LARGE_BYTES:
        return _encode(answer, files)
    return await asyncio.to_thread(_encode, answer, files)


def _encode(answer: dict[str, Any], files: dict[str, bytes]) -> bytes:
    pieces = [json.dumps(answer, allow_nan=False)[:-1].encode(), b', "files": {']
    for number, (name, content) in enumerate(files.items()):
        pieces += [b", " if number else b"", json.dumps(name).encode(), b': "']
        view = memoryview(content)
        for start in range(0, len(content), _PIECE_BYTES):
            pieces.append(b2a_base64(view[start : start + _PIECE_BYTES], newline=False))
        pieces.append(b'"')
    return b"".join([*pieces, b"}}"])


def _result(outcome: RunOutcome | CompileOutcome) -> dict[str, Any]:
    return {
        "status": "TimeLimitExceeded" if outcome.timed_out else "Finished",
        "execution_time": outcome.execution_time,
        "return_code": outcome.return_code,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
    }
