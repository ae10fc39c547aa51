"""`rl compare RUN RUN ...`: runs side by side, as tables, as a picture and as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.errors import DataError
from rl.observability.compare_page import write_comparison_page
from rl.observability.compare_plot import draw_comparison
from rl.observability.comparison import Setting, choose_metrics, differing_keys, read_settings
from rl.observability.curves import SMOOTHED_FROM
from rl.observability.final_values import LAST_STEPS, Final, final_value
from rl.observability.log import console
from rl.observability.paired import PairedComparison, paired_comparison
from rl.observability.progress import duration
from rl.observability.trajectories import read_records
from rl.observability.viewer import trajectory_file

_ZERO = 1e-12
EXPLANATION = (
    "95 % intervals. Over runs: t interval of the runs' final values. Over questions: the evaluation's own. Over "
    f"steps: t interval of the last {LAST_STEPS} steps, the noise of one curve, not what another seed would give. "
    f"Curves of {SMOOTHED_FROM} steps or more are smoothed. A band is the range of a setting's runs, or the interval "
    "over questions of one run's accuracy."
)


@dataclass(slots=True, frozen=True)
class ComparisonTable:
    """A table for the terminal and the page."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def main(argv: list[str]) -> int:
    """Compare runs; return the exit code.

    Raises:
        DataError: A folder is not a run directory, or no run has a wanted metric.
    """
    parser = argparse.ArgumentParser(prog="rl compare", description="Compare runs: settings, curves, final values.")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories; seeds of a setting together"
    )
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="names or patterns (tools/*/errors)")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="draw the curves into this picture")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write curves and tables as one page")
    arguments = parser.parse_args(argv)
    _check_outputs(arguments.output, arguments.html)
    settings, notes = read_settings(arguments.runs)
    metrics = choose_metrics(settings, arguments.metrics)
    tables = comparison_tables(settings, metrics, notes)
    target = console()
    for table in tables:
        _print_table(table, target)
    for note in (EXPLANATION, *notes):
        target.print(note, soft_wrap=True, markup=False)
    if arguments.output:
        draw_comparison(settings, metrics, arguments.output)
        target.print(f"curves  {arguments.output}", soft_wrap=True, markup=False)
    if arguments.html:
        write_comparison_page(settings, metrics, tables, [EXPLANATION, *notes], arguments.html)
        target.print(f"page    {arguments.html}", soft_wrap=True, markup=False)
    return 0


def comparison_tables(settings: Sequence[Setting], metrics: Sequence[str], notes: list[str]) -> list[ComparisonTable]:
    """The tables of a comparison: runs, differing keys, final values, paired evaluations.

    Args:
        settings: From `read_settings`.
        metrics: From `choose_metrics`.
        notes: Gets a note for evaluations that cannot be paired.
    """
    tables = [_runs_table(settings)]
    if keys := differing_keys(settings):
        rows = [[key, *values] for key, values in keys.items()]
        tables.append(ComparisonTable("Differing keys", ["key", *(s.label for s in settings)], rows))
    columns = ["metric", *(s.label for s in settings), "interval over"]
    tables.append(ComparisonTable("Final values", columns, [_final_row(settings, metric) for metric in metrics]))
    if pairs := _paired_rows(settings, notes):
        columns = ["", "difference in accuracy", "gained", "lost", "p", "questions"]
        tables.append(ComparisonTable("Last evaluations, question by question", columns, pairs))
    return tables


def _runs_table(settings: Sequence[Setting]) -> ComparisonTable:
    rows = []
    for setting in settings:
        for run in setting.runs:
            summary = run.directory.read_summary()
            rows.append(
                [
                    setting.label,
                    run.name,
                    str(run.seed),
                    str(run.last_step),
                    f"{summary['tokens']:,.0f}" if summary and summary["tokens"] else "-",
                    duration(summary["wall_s"]) if summary else "unfinished",
                ]
            )
    return ComparisonTable("Runs", ["setting", "run", "seed", "steps", "tokens", "time"], rows)


def _final_row(settings: Sequence[Setting], metric: str) -> list[str]:
    finals = [final_value(setting, metric) for setting in settings]
    over = dict.fromkeys(final.over for final in finals if final is not None and final.over)
    return [metric, *map(_shown, finals), ", ".join(over) or "-"]


def _shown(final: Final | None) -> str:
    if final is None:
        return "-"
    if final.low is None or final.high is None:
        return _number(final.value)
    return f"{_number(final.value)} ({_number(final.low)} to {_number(final.high)})"


def _number(value: float) -> str:
    return "0" if abs(value) < _ZERO else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _paired_rows(settings: Sequence[Setting], notes: list[str]) -> list[list[str]]:
    """Each further setting against the first, where both have evaluations of the same questions."""
    records = {setting.label: _last_evaluations(setting) for setting in settings}
    with_records = [setting.label for setting in settings if records[setting.label]]
    rows = []
    for label in with_records[1:]:
        first = with_records[0]
        try:
            compared = paired_comparison(records[first], records[label])
        except DataError as error:
            notes.append(f"{label} against {first}: not compared question by question. {error}")
            continue
        if compared.num_left_out:
            notes.append(
                f"{label} against {first}: questions left out, since only one has them: {compared.num_left_out}."
            )
        rows.append(_paired_row(f"{label} against {first}", compared))
    return rows


def _last_evaluations(setting: Setting) -> list[dict]:
    """Records of the last evaluation of every run; the samples of a question are those of all seeds."""
    found = []
    for run in setting.runs:
        if any(run.directory.trajectories.glob("eval_*.jsonl")):
            found += read_records(trajectory_file(run.directory, "eval", None))
    return found


def _paired_row(name: str, compared: PairedComparison) -> list[str]:
    difference = compared.difference
    return [
        name,
        f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})",
        str(len(compared.gained)),
        str(len(compared.lost)),
        f"{compared.p_value:.2g}",
        str(compared.num_questions),
    ]


def _print_table(table: ComparisonTable, target: Console) -> None:
    shown = Table(title=table.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(table.columns):
        shown.add_column(Text(column), overflow="fold", no_wrap=number == 0, justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    target.print(shown)


def _check_outputs(picture: Path | None, page: Path | None) -> None:
    for path in filter(None, (picture, page)):
        if not path.absolute().parent.is_dir():
            raise DataError(f"{path}: its folder does not exist. Create it, or choose another.")
    if picture is not None and picture.suffix.removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise DataError(f"--output: must end in .png, .svg or .pdf, got '{picture.name}'. Rename it.")
