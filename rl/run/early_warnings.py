"""Warns when a figure of a run is beyond its threshold for some steps, and ends the run beyond another."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.batches import GroupHeader
from rl.config.early_warning import EarlyWarning
from rl.observability.detectors import DETECTORS, WINDOW, Detector, StepView
from rl.observability.evaluations import Accuracy, read_evaluations
from rl.observability.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_KEY = "megatron_training.early_warning"
_FALL = "evaluation_fall"
_NUM_SHOWN = 3
_NUM_FIRST = 3


@dataclass(slots=True, frozen=True)
class _Limits:
    warn: float | None
    stop: float | None


@dataclass(slots=True)
class _State:
    num_beyond_warn: int = 0
    num_beyond_stop: int = 0
    is_raised: bool = False


class EarlyWarnings:
    """The warnings of a run.

    A warning is told once, when it is raised; `warnings/<name>` is 1 in each step until its figure is back.

    Args:
        directory: Gets `warnings.jsonl`.
        limits: The thresholds.
    """

    def __init__(self, directory: RunDirectory, limits: EarlyWarning) -> None:
        self._directory, self._limits = directory, limits
        self._first: list[Mapping[str, float | None]] = []
        self._recent: deque[Mapping[str, float | None]] = deque(maxlen=WINDOW)
        self._states = {name: _State() for name in DETECTORS}
        self._raised: dict[str, list[int]] = {}
        self._evaluations: list[Accuracy] = []
        self._has_new_evaluation = False

    def recall(self, rows: list[dict[str, Any]]) -> None:
        """Remember the steps and evaluations before a resume.

        Args:
            rows: Rows of metrics.jsonl.
        """
        for evaluation in read_evaluations(rows):
            self._add(evaluation.accuracy["all"])
            value = DETECTORS[_FALL].measure(StepView({}, [], [], self._evaluations, has_new_evaluation=True))
            if value is not None:
                self._judge(self._states[_FALL], DETECTORS[_FALL], value, self._limits_of(_FALL))
        self._has_new_evaluation = False
        for row in rows:
            if "timing_s/step" in row:
                self._remember(row)
                for name, state in self._states.items():
                    was_raised, state.is_raised = state.is_raised, bool(row.get(f"warnings/{name}"))
                    if state.is_raised and not was_raised:
                        self._raised.setdefault(name, []).append(int(row["step"] or 0))

    def record_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the accuracy of an evaluation, for the steps from this one on."""
        for evaluation in read_evaluations([{"step": step, **metrics}]):
            self._add(evaluation.accuracy["all"])

    def observe(
        self, step: int, metrics: Mapping[str, float], groups: Sequence[GroupHeader]
    ) -> tuple[dict[str, float], str | None]:
        """Measure one step, and tell and write new warnings.

        Args:
            step: Its number, from 1.
            metrics: The step's.
            groups: The step's; empty in a cold start.

        Returns:
            `warnings/<name>`, 1 while it is raised, for each figure with a threshold; and why the run must end, or
            None.
        """
        if not groups:
            return {}, None
        view = StepView(metrics, [*self._first, *self._recent], groups, self._evaluations, self._has_new_evaluation)
        self._has_new_evaluation = False
        found: dict[str, float] = {}
        reason = None
        for name, detector in DETECTORS.items():
            limits = self._limits_of(name)
            if limits == _Limits(None, None):
                continue
            value = detector.measure(view)
            if value is not None:
                action = self._judge(self._states[name], detector, value, limits)
                if action is not None:
                    text = self._report(step, name, value, action, limits, groups)
                    reason = text if action == "stop" else reason
            found[f"warnings/{name}"] = float(self._states[name].is_raised)
        self._remember(metrics)
        return found, reason

    def summary(self) -> list[str]:
        """One sentence for each figure that was beyond its threshold; empty without any."""
        return [
            f"early warning {name}: raised after step {', '.join(map(str, steps))}."
            for name, steps in self._raised.items()
        ]

    def _add(self, accuracy: Accuracy) -> None:
        """Remember an evaluation; those before it are forgotten if they had another number of questions."""
        if self._evaluations and self._evaluations[-1].num_questions != accuracy.num_questions:
            self._evaluations.clear()
            self._states[_FALL] = _State()
        self._evaluations.append(accuracy)
        self._has_new_evaluation = True

    def _limits_of(self, name: str) -> _Limits:
        return _Limits(getattr(self._limits, name), self._limits.stop.get(name))

    def _judge(self, state: _State, detector: Detector, value: float, limits: _Limits) -> str | None:
        """`warn` or `stop` where a figure has just been beyond a threshold for long enough."""
        is_warned = limits.warn is not None and detector.is_beyond(value, limits.warn)
        is_fatal = limits.stop is not None and detector.is_beyond(value, limits.stop)
        state.num_beyond_warn = state.num_beyond_warn + 1 if is_warned or is_fatal else 0
        state.num_beyond_stop = state.num_beyond_stop + 1 if is_fatal else 0
        was_raised = state.is_raised
        state.is_raised = (was_raised and state.num_beyond_warn > 0) or state.num_beyond_warn >= self._limits.patience
        if state.num_beyond_stop >= self._limits.patience:
            return "stop"
        return "warn" if state.is_raised and not was_raised else None

    def _report(
        self, step: int, name: str, value: float, action: str, limits: _Limits, groups: Sequence[GroupHeader]
    ) -> str:
        """Write and log a warning; return what an error says."""
        detector = DETECTORS[name]
        threshold = limits.stop if action == "stop" else limits.warn
        shown = _trajectories(detector, groups)
        side, patience = "at most" if detector.is_low_bad else "at least", self._limits.patience
        text = f"{name}: {detector.label}, is {value:.3g}, {side} {threshold:g} in {patience} {detector.unit} in a row."
        text += f" {detector.advice} See docs/warnings.md#{name}."
        which = f"--id {shown[0]}" if shown else "--worst"
        read = f" Read `rl view {self._directory.path} --step {step} {which}`."
        self._raised.setdefault(name, []).append(step)
        entry: dict[str, Any] = {
            "step": step,
            "name": name,
            "value": value,
            "threshold": threshold,
            "action": action,
            "text": text,
            "trajectories": shown,
        }
        with self._directory.warnings_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        logger.warning("early warning after step %d, %s%s", step, text, read)
        return (
            f"step {step}: {_KEY}.stop ends the run. {text}{read} To go on, resume the run with another threshold in "
            f"{_KEY}.stop.{name}."
        )

    def _remember(self, metrics: Mapping[str, float | None]) -> None:
        if len(self._first) < _NUM_FIRST:
            self._first.append(dict(metrics))
        else:
            self._recent.append(dict(metrics))


def _trajectories(detector: Detector, groups: Sequence[GroupHeader]) -> list[str]:
    """Ids of the trajectories that show a figure best."""
    rank = detector.rank
    if rank is None:
        return []
    every = [trajectory for group in groups for trajectory in group.trajectories]
    return [trajectory.id for trajectory in sorted(every, key=rank, reverse=True)[:_NUM_SHOWN]]
