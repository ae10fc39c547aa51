"""`rl report RUN`: table and curves of a run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rl.errors import DataError
from rl.observability.curves import draw_curves
from rl.observability.evaluations import Evaluation, read_evaluations
from rl.observability.log import console
from rl.observability.paired_report import compare_files, evaluation_file, print_comparison
from rl.observability.progress import duration
from rl.observability.run_directory import RunDirectory


@dataclass(slots=True, frozen=True)
class Stage:
    """One column of the table."""

    name: str
    evaluation: Evaluation


def main(argv: list[str]) -> int:
    """Print accuracy before and after a run, and draw its curves; return the exit code.

    Raises:
        DataError: A folder is not a run directory, or the run has no metrics.
    """
    parser = argparse.ArgumentParser(
        prog="rl report", description="Print accuracy before and after a run, and draw its curves."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a training run")
    against = "compare the last evaluation with that of this run, question by question; nothing else is printed"
    parser.add_argument("--against", type=Path, metavar="RUN", help=against)
    parser.add_argument("--base", type=Path, metavar="RUN", help="directory of an evaluation of the untrained model")
    parser.add_argument("--cold-start", type=Path, metavar="RUN", help="directory of the cold start")
    parser.add_argument(
        "--output", type=Path, metavar="PNG", help="where to draw the curves; default: report.png of the run"
    )
    arguments = parser.parse_args(argv)
    if arguments.against is not None:
        first, second = evaluation_file(arguments.against), evaluation_file(arguments.run)
        print_comparison(compare_files(first, second), first, second, console())
        return 0
    report(
        arguments.run, base=arguments.base, cold_start=arguments.cold_start, output=arguments.output, target=console()
    )
    return 0


def report(
    run: Path,
    *,
    base: Path | None = None,
    cold_start: Path | None = None,
    output: Path | None = None,
    target: Console,
) -> Path:
    """Print the tables, draw the curves, and print the paths of the run's files.

    Args:
        run: Directory of a training run.
        base: Directory of an evaluation of the untrained model.
        cold_start: Directory of the cold start.
        output: Path of the picture; by default report.png in the run directory.
        target: Output console.

    Returns:
        The path of the picture.

    Raises:
        DataError: A folder is not a run directory, or the run has no metrics.
    """
    directory = RunDirectory.open(run)
    rows = directory.read_metrics()
    if not rows:
        raise DataError(f"{directory.metrics_file}: no metrics yet. Wait for the first step.")
    evaluations = read_evaluations(rows)
    base_run = RunDirectory.open(base) if base else None
    base_evaluations = read_evaluations(base_run.read_metrics()) if base_run else []
    stages = [Stage("base model", base_evaluations[-1])] if base_evaluations else []
    for evaluation in evaluations[:1] + evaluations[1:][-1:]:
        name = "cold start" if cold_start and evaluation.step == 0 else f"step {evaluation.step}"
        stages.append(Stage(name, evaluation))
    if stages:
        target.print(accuracy_table(stages))
    else:
        target.print("No evaluation yet: set megatron_training.eval_data_path, or run `rl evaluate`.", soft_wrap=True)
    runs = {
        "base evaluation": base_run,
        "cold start": RunDirectory.open(cold_start) if cold_start else None,
        "training": directory,
    }
    target.print(_effort_table({name: r for name, r in runs.items() if r is not None}))
    picture = output or directory.path / "report.png"
    draw_curves(rows, evaluations, base_evaluations[-1] if base_evaluations else None, picture)
    _print_paths(directory, picture, target)
    return picture


def accuracy_table(stages: list[Stage]) -> Table:
    """Build a table of accuracies with 95 % intervals, one row per source and one column per stage."""
    table = Table(title="Accuracy (95 % interval)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for stage in stages:
        table.add_column(stage.name, justify="right", no_wrap=True)
    sources: dict[str, int] = {}
    for stage in stages:
        for source, accuracy in stage.evaluation.accuracy.items():
            sources[source] = accuracy.num_questions
    names = sorted(s for s in sources if s != "all")
    for source in [*names, *(["all"] if "all" in sources else [])]:
        cells = [_cell(stage.evaluation, source) for stage in stages]
        if source == "all":
            table.add_section()
        label = f"all, {sources[source]} questions" if source == "all" else source
        table.add_row(label, *cells, style="bold" if source == "all" else None)
    return table


def _cell(evaluation: Evaluation, source: str) -> str:
    accuracy = evaluation.accuracy.get(source)
    return f"{accuracy.mean:.2f} ({accuracy.low:.2f}-{accuracy.high:.2f})" if accuracy else "-"


def _effort_table(runs: dict[str, RunDirectory]) -> Table:
    table = Table(title="Effort", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "steps", "tokens", "time"):
        table.add_column(column, justify="left" if column == "run" else "right")
    total_s, is_whole = 0.0, True
    for name, run in runs.items():
        summary = run.read_summary()
        if summary is None:
            table.add_row(name, "unfinished", "-", "-")
            is_whole = False
            continue
        total_s += summary["wall_s"]
        tokens = f"{summary['tokens']:,.0f}" if summary["tokens"] else "-"
        table.add_row(name, str(summary["steps"]), tokens, duration(summary["wall_s"]))
    if is_whole and len(runs) > 1:
        table.add_section()
        table.add_row("together", "", "", duration(total_s), style="bold")
    return table


def _print_paths(directory: RunDirectory, picture: Path, target: Console) -> None:
    checkpoint = directory.latest_checkpoint()
    paths = {
        "curves": picture,
        "metrics": directory.metrics_file,
        "checkpoint": checkpoint or "none yet",
        "trajectories": directory.trajectories,
    }
    for name, path in paths.items():
        target.print(f"{name:<13}{_short(path)}", soft_wrap=True, markup=False)
    for name, option in {"to read one": "--best", "as a page": "--html"}.items():
        command = f"python -m rl view {_short(directory.path)} {option}"
        target.print(f"{name:<13}{command}", soft_wrap=True, markup=False)


def _short(path: Path | str) -> str:
    """Make a path relative to the working directory if it is below it."""
    if isinstance(path, Path) and path.resolve().is_relative_to(Path.cwd()):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)
