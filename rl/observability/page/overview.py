"""What the page shows of a run besides its trajectories: metrics, warnings, configuration, versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.observability.run_directory import RunDirectory


def overview(run: RunDirectory) -> dict[str, Any]:
    """Read the run's small files.

    Returns:
        `name`, `path`, `steps` and `metrics` (columns as long as `steps`, null where a step has no value), `warnings`,
        `config`, `versions`, `summary` (null while the run is not finished).

    Raises:
        DataError: A file is malformed.
    """
    steps, metrics = metric_columns(run.read_metrics())
    return {
        "name": run.path.resolve().name,
        "path": str(run.path.resolve()),
        "steps": steps,
        "metrics": metrics,
        "warnings": run.read_warnings(),
        "config": run.config_file.read_text(encoding="utf-8", errors="replace"),
        "versions": _text(run.versions_file),
        "summary": run.read_summary(),
    }


def trajectory_files(run: RunDirectory) -> list[Path]:
    """The trajectory files of a run by step; an evaluation after a step comes before the next step."""
    files = [*run.trajectories.glob("step_*.jsonl"), *run.trajectories.glob("eval_*.jsonl")]
    return sorted(files, key=lambda path: (path.stem.split("_")[1], path.stem.startswith("eval")))


def metric_columns(rows: list[dict[str, Any]]) -> tuple[list[int], dict[str, list[float | None]]]:
    """Turn lines of metrics.jsonl into columns.

    Args:
        rows: The lines. A step may have several, such as an evaluation and a training step; of two values of a metric
            in a step the later counts.

    Returns:
        The steps, ascending, and for each metric its values at these steps.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    steps = sorted(by_step)
    names = sorted({name for row in by_step.values() for name in row} - {"step"})
    return steps, {name: [by_step[step].get(name) for step in steps] for name in names}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
