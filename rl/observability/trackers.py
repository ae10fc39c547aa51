"""Destinations of metrics: always metrics.jsonl, and the trackers of `megatron_training.trackers`.

Each tracker runs on a thread of its own, so that neither a slow nor a failing one holds up or ends the run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from rl.batches import GroupHeader
from rl.config.kinds import TrackerName
from rl.config.schema import Config
from rl.errors import ConfigError, TurnwiseError
from rl.interfaces import Rollouts
from rl.observability.run_directory import RunDirectory
from rl.observability.tracker_clients import CLIENTS
from rl.observability.tracker_table import Row, table_rows

logger = logging.getLogger(__name__)

_TABLE_EVERY = 10
"""Steps between two tables of training trajectories."""
_START_S = 60.0
"""How long a run waits for a tracker to start."""
_CLOSE_S = 30.0
"""How long a run that has ended waits for its trackers, all together."""
_MOST_WAITING = 1000
"""Calls that wait for a slow tracker; later ones are left out."""


class Tracker(Protocol):
    """One destination of metrics."""

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Write metrics.

        Args:
            step: Completed steps; never falls.
            seconds: Time of the metrics, seconds since 1970.
            metrics: Finite numbers, for trackers; metrics.jsonl takes NaN and Inf too.
        """
        ...

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Write sampled trajectories.

        Args:
            step: Completed steps.
            name: `trajectories/train` or `trajectories/eval`.
            rows: Values by column, see `rl.observability.tracker_table.COLUMNS`.
        """
        ...

    def close(self, *, has_succeeded: bool) -> None:
        """Flush and close; tell whether the run succeeded."""
        ...


class JsonLines:
    """One JSON object per line: `step`, `time` (seconds since 1970) and the metrics. NaN and Inf become null."""

    def __init__(self, directory: RunDirectory) -> None:
        self._stream = directory.metrics_file.open("a", encoding="utf-8")

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Append a line and flush it, so that a killed run keeps it."""
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._stream.write(json.dumps({"step": step, "time": round(seconds, 3), **numbers}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class BackgroundTracker:
    """Starts and calls a tracker on a thread of its own. The first failure is a warning, later ones are counted.

    SwanLab would take over Ctrl-C if it were started on the main thread.

    Args:
        name: For messages.
        start: Makes the tracker.

    Raises:
        TimeoutError: `start` takes too long. If it ends later, the tracker is closed.
        Exception: Whatever `start` raises.
    """

    def __init__(self, name: str, start: Callable[[], Tracker]) -> None:
        self.name = name
        self.num_failures = 0
        """Calls that raised, or were left out because the tracker was too slow."""
        self._tracker: Tracker | Exception | None = None
        self._calls: queue.Queue[Callable[[Tracker], None]] = queue.Queue()
        self._has_started, self._has_ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {name}", daemon=True)
        self._thread.start()
        if not self._has_started.wait(_START_S):
            self.end(has_succeeded=False)
            raise TimeoutError(f"no answer within {_START_S:g} s")
        if isinstance(self._tracker, Exception):
            raise self._tracker

    def write(self, rows: Iterable[tuple[int, float, Mapping[str, float]]]) -> None:
        """Write metrics in the background: step, time and numbers of each row."""

        def call(tracker: Tracker) -> None:
            for step, seconds, metrics in rows:
                tracker.write(step, seconds, metrics)

        self._put(call)

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Write sampled trajectories in the background."""
        self._put(lambda tracker: tracker.write_table(step, name, rows))

    def end(self, *, has_succeeded: bool) -> None:
        """Close the tracker in the background, after all earlier calls."""

        def close(tracker: Tracker) -> None:
            self._has_ended.set()
            tracker.close(has_succeeded=has_succeeded)

        self._calls.put(close)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, and report what is missing."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("tracker %s: not all was written soon after the run's end", self.name)
        if self.num_failures:
            logger.warning(
                "tracker %s: %d writes failed and are missing there; metrics.jsonl has all",
                self.name,
                self.num_failures,
            )

    def _put(self, call: Callable[[Tracker], None]) -> None:
        if self._calls.qsize() < _MOST_WAITING:
            self._calls.put(call)
        else:
            self._count("it is too slow: writes are left out until it catches up")

    def _work(self, start: Callable[[], Tracker]) -> None:
        try:
            self._tracker = tracker = start()
        except Exception as error:  # for the thread that waits for the start
            self._tracker = error
            return
        finally:
            self._has_started.set()
        while not self._has_ended.is_set():
            call = self._calls.get()
            try:
                call(tracker)
            except Exception as error:  # network, disk, or a bug of a foreign library: the run goes on
                self._count(_in_a_line(error))

    def _count(self, reason: str) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            logger.warning("tracker %s: a write failed (%s); the run goes on", self.name, reason)


class MetricsWriter:
    """Writes metrics to metrics.jsonl and to the configured trackers of a run; a context manager that starts them.

    Raises:
        ConfigError: A configured tracker is not installed, or does not start.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        check_trackers(config)
        self._directory, self._config = directory, config
        self._lines = JsonLines(directory)
        self.trackers: list[BackgroundTracker] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics after `step` completed steps to every destination."""
        now = time.time()
        self._lines.write(step, now, metrics)
        finite = finite_metrics(metrics)
        for tracker in self.trackers:
            tracker.write([(step, now, finite)])

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Give the trackers the lines of the run that this one resumes.

        Args:
            rows: Lines of metrics.jsonl; they are in this run's file already.
        """
        history = [(row["step"], row.get("time", 0.0), finite_metrics(row)) for row in rows]
        for tracker in self.trackers:
            tracker.write(history)

    def write_trajectories(self, step: int, groups: Sequence[GroupHeader], rollouts: Rollouts, *, kind: str) -> None:
        """Give the trackers a few trajectories, where a table is due.

        Args:
            step: Completed steps.
            groups: Scored groups.
            rollouts: Has their texts.
            kind: `train` or `eval`.
        """
        count = self._config.megatron_training.tracker_trajectories
        is_due = kind == "eval" or step == 1 or step % _TABLE_EVERY == 0
        if not self.trackers or not count or not is_due:
            return
        try:
            rows = table_rows(groups, rollouts, count)
        except TurnwiseError as error:  # their worker has died: training does not need these texts
            logger.warning("step %d: no table of trajectories for the trackers (%s)", step, error)
            return
        for tracker in self.trackers:
            tracker.write_table(step, f"trajectories/{kind}", rows)

    def __enter__(self) -> MetricsWriter:
        try:
            for name in dict.fromkeys(self._config.megatron_training.trackers):
                self.trackers.append(self._start(name))
        except BaseException:
            self._close(has_succeeded=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(has_succeeded=kind is None)

    def _start(self, name: TrackerName) -> BackgroundTracker:
        try:
            return BackgroundTracker(name, lambda: CLIENTS[name].open(self._directory, self._config))
        except Exception as error:  # whatever a foreign library raises where there is no network, account or disk
            raise ConfigError(
                f"megatron_training.trackers: {name} did not start, got '{_in_a_line(error)}'. "
                f"{CLIENTS[name].advice} Or take it out of the list."
            ) from error

    def _close(self, *, has_succeeded: bool) -> None:
        self._lines.close()
        for tracker in self.trackers:
            tracker.end(has_succeeded=has_succeeded)
        deadline = time.monotonic() + _CLOSE_S
        for tracker in self.trackers:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C waits no longer
                tracker.join(max(0.0, deadline - time.monotonic()))


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def finite_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line that are finite numbers, without `step` and `time`."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("step", "time") and value is not None and math.isfinite(value)
    }


def check_trackers(config: Config) -> None:
    """Check that the packages of the configured trackers are installed.

    Raises:
        ConfigError: A package is missing.
    """
    for name in config.megatron_training.trackers:
        package = CLIENTS[name].package
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"megatron_training.trackers: {name} needs the package {package}, which is not installed. "
                f"Run `pip install {package}`, or take it out of the list."
            )
