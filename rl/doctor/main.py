"""`rl doctor`: what a run needs, checked on this machine before it starts."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rl.config.load import compose_config
from rl.doctor.findings import Check, Finding, Status
from rl.doctor.machine import machine_checks
from rl.errors import ConfigError
from rl.observability.log import console

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
_SLOW_S = 1.0
"""Seconds from which a check's duration is shown."""


def main(argv: list[str]) -> int:
    """Check the machine, and with a configuration the run.

    Returns:
        The exit code, 2 if a check failed.
    """
    about = "Check this machine, and with --config-name a run on it: each line says what was found and what to do."
    parser = argparse.ArgumentParser(prog="rl doctor", description=about)
    which = "a YAML file in --config-dir, or a path; without it the machine alone is checked"
    parser.add_argument("--config-name", metavar="NAME", help=which)
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="folder of your YAML files; default: configs")
    parser.add_argument("--no-engine", action="store_true", help="do not start the engine for two tokens")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example rl_config.epochs=2")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.overrides and arguments.config_name is None:
        raise ConfigError(
            f"rl doctor: overrides need --config-name, got {arguments.overrides[0]}. Name a configuration."
        )
    console().print("[bold]this machine[/bold]")
    found = run_all(machine_checks(), console())
    if arguments.config_name is not None:
        composed = compose_config(arguments.config_name, arguments.overrides, arguments.config_dir)
        from rl.doctor.run import configuration_checks  # imports torch, which takes seconds

        console().print(f"[bold]{arguments.config_name}[/bold]")
        found += run_all(configuration_checks(composed, with_engine=not arguments.no_engine), console())
    counts = Counter(finding.status for finding in found)
    console().print(f"{counts[Status.OK]} ok, {counts[Status.WARN]} warnings, {counts[Status.FAIL]} failures")
    return 2 if counts[Status.FAIL] else 0


def run_all(checks: Sequence[Check], target: Console) -> list[Finding]:
    """Run checks one after the other and print each finding at once."""
    found = []
    for check in checks:
        start = time.monotonic()
        findings = check.run()
        took_s = time.monotonic() - start
        for finding in findings:
            line = Text(f"{finding.status:<5}", _STYLES[finding.status])
            line.append(f"{check.name}: {finding.text}", "default")
            if took_s >= _SLOW_S:
                line.append(f" ({took_s:.0f} s)", "dim")
            target.print(line, soft_wrap=True)
        found += findings
    return found
