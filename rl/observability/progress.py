"""Progress of a run: on a terminal a bar with reward, tokens/s and remaining time, in a pipe one line per step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from rl.observability.log import console
from rl.observability.shortfall import shortfall_figures

logger = logging.getLogger(__name__)

_SHOWN = {
    "critic/score/mean": "reward {:.3f}",
    "actor/loss": "loss {:.3f}",
    "actor/entropy": "entropy {:.3f}",
    "actor/grad_norm": "grad {:.2f}",
    "response_length/mean": "length {:.0f}",
}
"""Metrics in the line of a step, with their formats."""
_ON_BAR = {name: _SHOWN[name] for name in ("critic/score/mean", "actor/loss")}
"""Metrics that fit next to the bar in 80 columns."""
_LINE_EVERY_S = 20.0
"""In a pipe, interval between lines with the number of finished groups."""


class RunProgress:
    """Shows the progress of a run.

    Args:
        num_steps: Steps of the whole run, including those before a resumed checkpoint; may change during the run.
        start_step: Steps completed before this process started.
        target: Output console; by default that of this process.
        has_bar: Whether a terminal gets a bar. A debugger needs the terminal for itself.
    """

    def __init__(
        self, num_steps: int, *, start_step: int = 0, target: Console | None = None, has_bar: bool = True
    ) -> None:
        self.num_steps, self._start_step = num_steps, start_step
        self._console = target or console()
        self._has_bar = has_bar and self._console.is_terminal
        self._start = self._last_line = time.monotonic()
        self._phase = "evaluation"  # before the first step, only an evaluation has groups
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[step]}"),
            TextColumn("{task.fields[phase]}"),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._has_bar,
        )
        self._task: TaskID | None = None
        self._has_begun = False

    def __enter__(self) -> RunProgress:
        self._bar.start()
        self._task = self._bar.add_task("run", total=None, phase="starting", step="", figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, start_step: int) -> None:
        """Start the clock for the remaining time; call it before the first step."""
        self._start_step, self._start, self._has_begun = start_step, time.monotonic(), True
        self._update(total=max(self.num_steps, 1), completed=start_step, step=self._count(start_step))

    def groups(self, done: int, wanted: int) -> None:
        """Show the number of finished groups of the step."""
        self._update(phase=f"{self._phase} {done}/{wanted}")
        if not self._has_begun:  # an evaluation without training
            self._update(total=max(wanted, 1), completed=done)
        now = time.monotonic()
        if not self._has_bar and now - self._last_line > _LINE_EVERY_S:
            self.note(f"{self._phase} {done}/{wanted}")

    def phase(self, text: str) -> None:
        """Show the current phase; only on a bar."""
        self._phase = text
        self._update(phase=text)

    def step(self, completed: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step.

        Args:
            completed: Completed steps, from 1.
            metrics: Metrics of the step.
        """
        if self._has_bar:
            figures = self._figures(completed, metrics, _ON_BAR)
            total = max(self.num_steps, 1)
            self._update(total=total, completed=completed, step=self._count(completed), figures=figures)
        else:
            self.note(f"{self._count(completed)}  {self._figures(completed, metrics, _SHOWN)}")

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._last_line = time.monotonic()
        self._console.print(text, soft_wrap=True, markup=False)

    def _figures(self, completed: int, metrics: Mapping[str, float], formats: Mapping[str, str]) -> str:
        shown = [form.format(metrics[name]) for name, form in formats.items() if name in metrics]
        shown += shortfall_figures(metrics)
        step_s = metrics.get("perf/time_per_step", 0.0)
        if step_s > 0 and "perf/total_num_tokens" in metrics:
            shown.append(f"{metrics['perf/total_num_tokens'] / step_s:.0f} tokens/s")
        shown.append(f"{step_s:.1f} s")
        left = (time.monotonic() - self._start) / max(1, completed - self._start_step) * (self.num_steps - completed)
        shown.append(f"left {duration(left)}")
        return "  ".join(shown)

    def _count(self, completed: int) -> str:
        return f"step {completed}/{self.num_steps}"

    def _update(self, **fields: object) -> None:
        if self._task is not None:
            self._bar.update(self._task, **fields)  # type: ignore[arg-type]


def duration(seconds: float) -> str:
    """Format seconds: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
