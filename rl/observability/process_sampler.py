"""py-spy beside the processes of a run: where the Python code of driver and workers spends a step."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

_PER_SECOND = 50
_LONGEST_S = 600
"""Seconds after which py-spy stops by itself."""
_END_TIMEOUT_S = 60.0
_MAX_PROCESSES = 32
_NAMES = {
    "ray::ActorWorker": "actor",
    "ray::RolloutWorker": "rollout",
    "ray::RewardWorker": "reward",
    "VLLM::EngineCore": "engine",
    "VLLM::Worker": "engine-worker",
}
"""Titles of the processes that are sampled beside the driver, and their names in files."""


@dataclass(slots=True)
class _Sampler:
    """py-spy on one process."""

    name: str
    process: subprocess.Popen[str]


@contextmanager
def sampled_processes(folder: Path, prefix: str) -> Iterator[None]:
    """Sample this process and the run's workers on this machine while the block runs.

    Writes `PREFIX.NAME.speedscope.json` for each process. What goes wrong is a warning.

    Args:
        folder: Gets the files.
        prefix: First part of their names.
    """
    program = _find_program()
    if program is None:
        logger.warning("py-spy is not installed, so the profile has no stacks of Python code. `pip install py-spy`.")
        yield
        return
    samplers = [_start(program, pid, name, folder / f"{prefix}.{name}.speedscope.json") for name, pid in _processes()]
    try:
        yield
    finally:
        for sampler in samplers:
            sampler.process.send_signal(signal.SIGINT)  # py-spy then writes its file
        for reason in dict.fromkeys(filter(None, map(_end, samplers))):
            logger.warning("%s", reason)


def _find_program() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _processes() -> Iterator[tuple[str, int]]:
    """Names and ids of the processes to sample."""
    me = psutil.Process()
    yield "driver", me.pid
    num = 1
    for process in me.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # it has ended
            continue
        for start, name in _NAMES.items():
            if title.startswith(start) and num < _MAX_PROCESSES:
                num += 1
                yield f"{name}-{process.pid}", process.pid


def _start(program: str, pid: int, name: str, output: Path) -> _Sampler:
    command = [
        program, "record", "--pid", str(pid), "--format", "speedscope", "--output", str(output),
        "--rate", str(_PER_SECOND), "--duration", str(_LONGEST_S),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return _Sampler(name, process)


def _end(sampler: _Sampler) -> str | None:
    """Wait for py-spy's file; returns why there is none."""
    try:
        output, _ = sampler.process.communicate(timeout=_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        sampler.process.kill()
        sampler.process.communicate()
        return f"py-spy: did not end within {_END_TIMEOUT_S:.0f} s for {sampler.name}, which has no stacks."
    if sampler.process.returncode == 0:
        return None
    if "ermission" in output or "not permitted" in output:
        return (
            "py-spy: this process may not read others, so the profile has no stacks of Python code. Run as root, start "
            "the container with --cap-add SYS_PTRACE, or set /proc/sys/kernel/yama/ptrace_scope to 0."
        )
    reason = output.strip().rpartition("\n")[2]
    return f"py-spy: could not sample {sampler.name}, got '{reason[:200]}'."
