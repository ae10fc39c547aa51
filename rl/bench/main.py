"""The command: each benchmark runs in a process of its own, with the environment its libraries need."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from rl.bench.figures import Figure, print_table, write_json
from rl.config.load import load_config
from rl.errors import TurnwiseError
from rl.inference.environment import engine_environment

BENCHMARKS = ("update", "generation", "step")
_TIMEOUT_S = 1800


def main(argv: list[str]) -> int:
    """Run the chosen benchmarks, print a table and write JSON.

    Args:
        argv: Names from `BENCHMARKS` (none: all of them), `--config-name`, `--output FILE`, and `key=value` overrides.

    Returns:
        0, or 1 where a goal was not reached.

    Raises:
        TurnwiseError: A benchmark failed.
    """
    parser = argparse.ArgumentParser(prog="rl bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)} (default: all), and key=value overrides")
    parser.add_argument("--config-name", default="dapo_smollm2_135m_retool")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    args = parser.parse_args(argv)
    overrides = [name for name in args.names if "=" in name]
    names = [name for name in args.names if "=" not in name] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark '{name}'; choose from {', '.join(BENCHMARKS)}")
    console = Console()
    figures: list[Figure] = []
    for name in names:
        console.print(f"measuring {name} ...")
        figures += _measure(name, args.config_name, overrides)
    print_table(figures, console)
    write_json(figures, args.output)
    console.print(f"written to {args.output}")
    return int(any(f.is_reached is False for f in figures))


def _measure(name: str, config_name: str, overrides: list[str]) -> list[Figure]:
    environment = engine_environment(load_config(config_name, overrides), tuple(sorted(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="turnwise-bench-") as directory:
        output = Path(directory) / "figures.json"
        command = [sys.executable, "-m", f"rl.bench.{name}", config_name, str(output), *overrides]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode or not output.exists():
            raise TurnwiseError(f"bench {name}: failed with exit code {done.returncode}.\n{done.stderr[-3000:]}")
        records = json.loads(output.read_text())
    return [Figure(**{k: v for k, v in record.items() if k != "is_reached"}) for record in records]
