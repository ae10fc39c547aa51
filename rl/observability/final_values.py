"""Final values of metrics with 95 % intervals, for the comparison of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from rl.observability.comparison import ComparedRun, Setting, interval_metrics, is_evaluation

LAST_STEPS = 10
"""Steps at the end of a run over which the final value of a training metric is averaged."""


@dataclass(slots=True, frozen=True)
class Final:
    """The final value of a metric in one setting."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None without an interval."""
    high: float | None
    over: str
    """What the interval is over: `3 runs`, `200 questions` or `10 steps`; empty without an interval."""


def final_value(setting: Setting, metric: str) -> Final | None:
    """The final value of a metric with its 95 % interval; None if no run has the metric.

    A run's final value is that of its last evaluation, or the mean of the last `LAST_STEPS` steps. The interval is

    * several runs: mean ± t(n - 1) s / sqrt(n) over their final values, with the sample standard deviation s, cut off
      at 0 and 1 for an accuracy;
    * the accuracy of one run: the evaluation's, over questions;
    * a training metric of one run: mean ± t(k - 1) s / sqrt(k) over the last k steps, the noise of this curve and not
      what another seed would give.
    """
    runs = setting.with_metric(metric)
    if len(runs) > 1:
        values = [_final_of(run, metric) for run in runs]
        return _with_interval(values, f"{len(runs)} runs", is_share=is_evaluation(metric) and "/acc/" in metric)
    if runs and is_evaluation(metric):
        return _of_evaluation(runs[0], metric)
    if runs:
        values = _last_values(runs[0], metric)
        return _with_interval(values, f"{len(values)} steps")
    return None


def _of_evaluation(run: ComparedRun, metric: str) -> Final:
    value, step = _final_of(run, metric), max(run.curves[metric])
    names = (*interval_metrics(metric), f"{metric.rpartition('/')[0].removesuffix('/acc')}/num_questions")
    low, high, questions = (run.curves.get(name, {}).get(step) for name in names)
    if low is None or high is None or questions is None:
        return Final(value, None, None, "")
    return Final(value, low, high, f"{questions:.0f} questions")


def _last_values(run: ComparedRun, metric: str) -> list[float]:
    curve = run.curves[metric]
    return [curve[step] for step in sorted(curve)[-LAST_STEPS:]]


def _final_of(run: ComparedRun, metric: str) -> float:
    values = _last_values(run, metric)
    return values[-1] if is_evaluation(metric) else math.fsum(values) / len(values)


def _with_interval(values: Sequence[float], over: str, *, is_share: bool = False) -> Final:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Final(mean, None, None, "")
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    low, high = mean - half, mean + half
    return Final(mean, max(0.0, low), min(1.0, high), over) if is_share else Final(mean, low, high, over)
