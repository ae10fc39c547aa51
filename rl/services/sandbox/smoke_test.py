"""Runs the sandbox's first program, before it accepts others."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack

from rl.services.sandbox.job import Job, memory_file, pack_job
from rl.services.sandbox.outcome import parse_ending
from rl.services.sandbox.zygote_process import Zygote

_CODE, _OUTPUT = b"import json\nprint(6 * 7)\n", b"42\n"
_TIMEOUT_S, _GRACE_S = 10.0, 5.0
_MEMORY_BYTES = 1 << 30
_MAX_READ_BYTES, _MAX_SHOWN = 1 << 16, 500


def run_smoke_test(zygote: Zygote) -> str:
    """Run a small program in a zygote that is ready and has no worker yet, and wait for its end.

    Returns:
        What went wrong; empty if the program printed what it should.
    """
    job = Job("main.py", (), _TIMEOUT_S, None, _MEMORY_BYTES, _MEMORY_BYTES)
    try:
        with ExitStack() as stack:
            status, stdout, stderr = pipes = [os.pipe() for _ in range(3)]
            for read_end, _ in pipes:
                stack.callback(os.close, read_end)
            payload, stdin = pack_job(job, {job.file: _CODE}), memory_file(b"")
            sent = [payload, status[1], stdin, stdout[1], stderr[1]]
            try:
                zygote.add_worker()
                zygote.send(sent)
            finally:
                for descriptor in sent:
                    os.close(descriptor)
            outcome = _read_until_end(status[0], time.monotonic() + _TIMEOUT_S + _GRACE_S)
            if not outcome:
                return "no worker answered"
            ending, _ = parse_ending(outcome)
            printed, errors = os.read(stdout[0], _MAX_READ_BYTES), os.read(stderr[0], _MAX_READ_BYTES)
    except (OSError, ValueError) as error:
        return str(error)
    if ending.return_code == 0 and printed == _OUTPUT:
        return ""
    text = (errors or printed).decode("utf-8", "replace").strip()
    return f"exit code {ending.return_code}, {text[-_MAX_SHOWN:]!r}"


def _read_until_end(pipe: int, deadline: float) -> bytes:
    """Read until the writer closes the pipe, or until the deadline."""
    content = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            break
        content += chunk
    return content
