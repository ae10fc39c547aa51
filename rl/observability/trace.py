"""`rl timeline RUN`: a step's timeline as a table, and as a file for ui.perfetto.dev."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rl.errors import DataError
from rl.observability.log import console
from rl.observability.run_directory import RunDirectory
from rl.observability.timeline import DRIVER, GENERATE, STEP, TRAJECTORY, step_spans
from rl.types import Span

_TOUCHING_US = 1000
"""Records round times to 0.1 ms. A span that begins so little before the end of the one before it begins there."""

_HOLDERS = (STEP, TRAJECTORY)
"""Spans that others lie within."""

Event = dict[str, Any]


def main(argv: list[str]) -> int:
    """Print a step's timeline and write it as a trace; return the exit code.

    Raises:
        DataError: The run or the step does not exist.
    """
    about = "Show when driver, ranks and rollout workers did what in a step, and write it as a trace for Perfetto."
    parser = argparse.ArgumentParser(prog="rl timeline", description=about)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--step", type=int, help="number of the step, from 1; default: the last")
    where = "where to write the trace; default: timeline/step_N.trace.json of the run"
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=where)
    arguments = parser.parse_args(argv)
    run = RunDirectory.open(arguments.run)
    step = arguments.step if arguments.step is not None else last_step(run)
    spans = step_spans(run, step)
    path = arguments.output or run.timeline_file(step).with_suffix(".trace.json")
    events = trace_events(spans)
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n", encoding="utf-8")
    print_timeline(spans, step, console())
    console().print(f"{path}: {len(events)} events. Open it in https://ui.perfetto.dev", soft_wrap=True, markup=False)
    return 0


def last_step(run: RunDirectory) -> int:
    """Number of the last step with a timeline.

    Raises:
        DataError: There is none.
    """
    steps = run.timeline_steps()
    if not steps:
        raise DataError(f"{run.path}: no timeline. A run has one after each step; runs of older versions have none.")
    return steps[-1]


def print_timeline(spans: Sequence[Span], step: int, target: Console) -> None:
    """Print the driver's phases, and for each worker how long each kind of work took.

    Times of a rollout worker are sums over its trajectories, many of which run at once.
    """
    whole_s = next(span.end - span.start for span in spans if span.who == DRIVER and span.name == STEP)
    table = Table(box=SIMPLE_HEAD, title=f"step {step}: {whole_s:.2f} s", title_justify="left")
    table.add_column("who")
    table.add_column("what", no_wrap=True)
    for heading in ("times", "seconds", "of the step", "begins at"):
        table.add_column(heading, justify="right")
    begun = min(span.start for span in spans if span.who == DRIVER)
    works: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        if (span.who, span.name) != (DRIVER, STEP) and span.name != TRAJECTORY:
            works[span.who, span.name].append(span)
    for who, rows in groupby(works.items(), key=lambda row: row[0][0]):
        for number, ((_, name), own) in enumerate(rows):
            seconds, first = sum(s.end - s.start for s in own), min(s.start for s in own) - begun
            shown = who if number == 0 else ""
            table.add_row(shown, name, str(len(own)), f"{seconds:.3f}", f"{seconds / whole_s:.0%}", f"{first:.3f}")
    target.print(table)


def trace_events(spans: Iterable[Span]) -> list[Event]:
    """Convert spans to Chrome's trace events, which Perfetto opens.

    A worker is a process. A trajectory keeps a thread of its worker until it ends; then another takes that thread.
    Spans of a trajectory that overlap (calls that run at once) have further threads, so that in each thread a span
    lies within another or does not overlap it. A counter shows how many requests each engine has.

    Returns:
        Complete events (`ph: X`), names (`M`) and counters (`C`), times in microseconds from the first span.
    """
    ordered = sorted(spans, key=lambda s: (s.start, -s.end))
    origin = ordered[0].start
    events: list[Event] = []
    for pid, who in enumerate(dict.fromkeys(span.who for span in ordered)):
        own = [span for span in ordered if span.who == who]
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": who}})
        for tid, (name, lane) in enumerate(_threads(own, origin)):
            events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}})
            events += [_complete(pid, tid, *placed) for placed in lane.placed]
        events += _requests(pid, [span for span in own if span.name == GENERATE], origin)
    return events


class _Lane:
    """A thread of the trace. Spans come in the order of their starts."""

    def __init__(self) -> None:
        self.placed: list[tuple[Span, int, int]] = []
        """Spans with their start and end, in microseconds."""
        self.outer_end = self._last_end = 0
        """Ends of the last holder, and of the last span within it or behind it."""

    def add(self, span: Span, start: int, end: int) -> bool:
        """Add a span within the last holder or behind everything; returns whether it fits there."""
        if start < self._last_end - _TOUCHING_US:
            return False
        start = max(start, self._last_end)
        if start < self.outer_end < end - _TOUCHING_US:  # neither within the holder nor behind it
            if start < self.outer_end - _TOUCHING_US:
                return False
            start = self.outer_end
        elif start < self.outer_end:
            end = min(end, self.outer_end)
        end = max(start, end)
        self._last_end = end
        if span.name in _HOLDERS:
            self.outer_end, self._last_end = end, start
        self.placed.append((span, start, end))
        return True


def _threads(spans: Sequence[Span], origin: float) -> Iterator[tuple[str, _Lane]]:
    """The threads of one worker with their names: its own work first, then its trajectories.

    Args:
        spans: In the order of their starts.
        origin: Seconds since 1970 that become 0.
    """
    within: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        if span.name != TRAJECTORY:
            within[span.trajectory].append(span)
    work = [_Lane()] if within[None] else []
    _fill(work, within[None], origin)
    slots: list[list[_Lane]] = []
    for span in spans:
        if span.name == TRAJECTORY:
            start = _microseconds(span.start, origin)
            slot = next((s for s in slots if s[0].outer_end <= start + _TOUCHING_US), None)
            if slot is None:
                slots.append(slot := [_Lane()])
            _fill(slot, [span, *within[span.trajectory]], origin)
    for name, lanes in (("work", work), *((f"slot {number}", slot) for number, slot in enumerate(slots))):
        for number, lane in enumerate(lanes):
            yield f"{name}, at once {number}" if number else name, lane


def _fill(lanes: list[_Lane], spans: Iterable[Span], origin: float) -> None:
    """Put each span into the first lane where it fits; appends lanes as needed."""
    for span in spans:
        times = _microseconds(span.start, origin), _microseconds(span.end, origin)
        if not any(lane.add(span, *times) for lane in lanes):
            lanes.append(_Lane())
            lanes[-1].add(span, *times)


def _complete(pid: int, tid: int, span: Span, start: int, end: int) -> Event:
    event: Event = {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": end - start, "name": span.name}
    if span.name == TRAJECTORY:
        event["name"] = span.trajectory
    elif span.trajectory is not None:
        event["args"] = {"trajectory": span.trajectory}
    return event


def _requests(pid: int, generations: Iterable[Span], origin: float) -> Iterator[Event]:
    """How many generations run at once: an event for each change."""
    changes: dict[int, int] = defaultdict(int)
    for span in generations:
        changes[_microseconds(span.start, origin)] += 1
        changes[_microseconds(span.end, origin)] -= 1
    running = 0
    for at, change in sorted(changes.items()):
        running += change
        yield {"ph": "C", "pid": pid, "ts": at, "name": "requests", "args": {"running": running}}


def _microseconds(at: float, origin: float) -> int:
    return round((at - origin) * 1e6)
