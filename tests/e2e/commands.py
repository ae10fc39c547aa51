"""Runs the command on a tiny model, and reads what a run has logged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
"""Longest wait for one thing, seconds: of a machine that is busy with other things."""


def start(
    command: str, workspace: Path, name: str, *overrides: str, debugger: Sequence[str] = (), typed: str | None = None
) -> subprocess.Popen[str]:
    """Start `rl <command>` with configs/tiny.yaml on the model and the prompts of a workspace; its run is named.

    Args:
        command: The command.
        workspace: See `make_workspace`.
        name: Name of the run.
        overrides: Further arguments.
        debugger: Arguments of Python before `-m rl`.
        typed: Text on standard input.
    """
    settings = {
        "actor_config.load": workspace / "model",
        "megatron_training.data_path": workspace / "prompts.parquet",
        "megatron_training.eval_data_path": workspace / "prompts.parquet",
        "megatron_training.output_dir": workspace / "runs",
        "megatron_training.run_name": name,
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    process = subprocess.Popen(
        [
            sys.executable,
            *debugger,
            "-m",
            "rl",
            command,
            "--config-dir",
            "tests/e2e/configs",
            "--config-name",
            "tiny",
            *arguments,
            *overrides,
        ],
        cwd=ROOT,
        stdin=None if typed is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.stdin is not None:
        process.stdin.write(typed or "")
        process.stdin.close()
        process.stdin = None
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end; whatever happened, leave no process behind."""
    with ended(process):
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return output


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a command with all that it started, should it still run when the block ends."""
    try:
        yield
    finally:
        if process.poll() is None:
            for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                member.kill()
            process.communicate()


def metrics_of(workspace: Path, name: str) -> list[dict[str, float]]:
    """What a run has logged so far, each record a dict."""
    path = workspace / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(workspace: Path, name: str) -> list[dict[str, float]]:
    """Those of its training steps."""
    return [m for m in metrics_of(workspace, name) if "timing_s/step" in m]
