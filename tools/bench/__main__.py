"""The command line. Each benchmark runs in its own process, with the environment that its libraries need."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from rl.cluster.endings import terminated_like_interrupted
from rl.config.load import load_config
from rl.errors import TurnwiseError
from rl.inference.environment import engine_environment
from rl.observability.log import setup_logging
from tools.bench.figures import Figure, print_table, write_json

logger = logging.getLogger("tools.bench")

BENCHMARKS = (
    "update",
    "generation",
    "step",
    "driver",
    "algorithms",
    "retriever",
    "tools",
    "parsers",
    "sandbox",
    "page",
    "serve",
    "ahead",
)
_CONFIG = "dapo_smollm2_135m_retool"
_CONFIG_OF = {"serve": "serve_smollm2_135m", "ahead": "grpo_smollm2_135m_game"}
"""Configurations of benchmarks that cannot use `_CONFIG`."""
_IN_A_ROLLOUT_WORKER = ("generation", "tools")
"""These measure code of a rollout worker and get its environment. The others do not: it would bind all of an actor's
threads to one core."""
_TIMEOUT_S = 1800
_END_TIMEOUT_S = 40.0


def main(argv: list[str]) -> int:
    """Run the chosen benchmarks, print a table and write JSON.

    Args:
        argv: Names from `BENCHMARKS` (none: all of them), `--config-name`, `--output FILE`, and `key=value` overrides.

    Returns:
        0, or 1 if a goal was missed.

    Raises:
        TurnwiseError: A benchmark failed.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)} (default: all), and key=value overrides")
    parser.add_argument("--config-name", help=f"default: {_CONFIG}; for serve: {_CONFIG_OF['serve']}")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    args = parser.parse_intermixed_args(argv)
    overrides = [name for name in args.names if "=" in name]
    names = [name for name in args.names if "=" not in name] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark '{name}'; choose from {', '.join(BENCHMARKS)}")
    console = Console()
    figures: list[Figure] = []
    with terminated_like_interrupted():
        for name in names:
            console.print(f"measuring {name} ...")
            figures += _measure(name, args.config_name or _CONFIG_OF.get(name, _CONFIG), overrides)
    print_table(figures, console)
    write_json(figures, args.output)
    console.print(f"written to {args.output}")
    return int(any(f.is_reached is False for f in figures))


def _measure(name: str, config_name: str, overrides: list[str]) -> list[Figure]:
    environment = {}
    with tempfile.TemporaryDirectory(prefix="turnwise-bench-") as directory:
        if name in _IN_A_ROLLOUT_WORKER:
            cores = tuple(sorted(os.sched_getaffinity(0)))
            environment = engine_environment(load_config(config_name, overrides), cores, Path(directory))
        output = Path(directory) / "figures.json"
        command = [sys.executable, "-m", f"tools.bench.{name}", config_name, str(output), *overrides]
        log = Path(directory) / "output.log"
        code = run_in_time(command, os.environ | environment, log, timeout_s=_TIMEOUT_S)
        if code or not output.exists():
            ending = "took too long" if code is None else f"failed with exit code {code}"
            end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise TurnwiseError(f"bench {name}: {ending}. It ended with:\n{end}")
        records = json.loads(output.read_text())
    return [Figure(**{k: v for k, v in record.items() if k != "is_reached"}) for record in records]


def run_in_time(command: list[str], environment: dict[str, str], log: Path, *, timeout_s: float) -> int | None:
    """Run a command in its own process group, and end the whole group afterwards.

    Args:
        command: Program and arguments.
        environment: The program's environment.
        log: File for its output.
        timeout_s: Time limit in seconds; then it gets SIGTERM, and SIGKILL `_END_TIMEOUT_S` later.

    Returns:
        Its exit code; None after a timeout.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM first: `rl train` then ends processes that left the group."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + _END_TIMEOUT_S
            while _group_exists(process) and time.monotonic() < deadline:
                time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _group_exists(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    setup_logging()
    try:
        sys.exit(main(sys.argv[1:]))
    except TurnwiseError as error:
        logger.error("%s", error)
        sys.exit(1)
