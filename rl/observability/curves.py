"""Plots of a run: reward by step, and accuracy with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl.observability.evaluations import Evaluation

_INK, _GRAY, _BLUE, _ORANGE = "#222222", "#8a8a8a", "#1f6fb2", "#d9731a"
SMOOTHED_FROM = 24
"""Number of steps from which a smoothed curve is drawn."""


def draw_curves(
    rows: Sequence[dict[str, Any]], evaluations: Sequence[Evaluation], base: Evaluation | None, path: Path
) -> None:
    """Plot reward and accuracy over the steps.

    Args:
        rows: Lines of metrics.jsonl.
        evaluations: Evaluations of the run, by step.
        base: Evaluation of the untrained model, drawn as a horizontal line.
        path: Output PNG.
    """
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_rewards(left, rows)
    _draw_accuracy(right, evaluations, base)
    figure.savefig(path, facecolor="white")


def _draw_rewards(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    points = {row["step"]: row["critic/score/mean"] for row in rows if row.get("critic/score/mean") is not None}
    steps = sorted(points)
    values = [points[step] for step in steps]
    is_smoothed = len(values) >= SMOOTHED_FROM
    alpha = 0.55 if is_smoothed else 1.0
    axes.plot(steps, values, color=_BLUE, linewidth=1.2, marker="o", markersize=4, alpha=alpha, label="each step")
    if is_smoothed:
        axes.plot(steps, smooth(values), color=_BLUE, linewidth=2.4, label="smoothed")
        axes.legend(frameon=False, loc="lower right")
    _format_axes(axes, "Reward of the training rollouts", "mean reward", steps)


def _draw_accuracy(axes: Axes, evaluations: Sequence[Evaluation], base: Evaluation | None) -> None:
    steps = [e.step for e in evaluations if "all" in e.accuracy]
    points = [e.accuracy["all"] for e in evaluations if "all" in e.accuracy]
    if points:
        means = [p.mean for p in points]
        below = [max(0.0, p.mean - p.low) for p in points]
        above = [max(0.0, p.high - p.mean) for p in points]
        axes.errorbar(
            steps, means, yerr=[below, above], color=_ORANGE, linewidth=2, marker="o", markersize=6, capsize=4,
            label="trained model",
        )  # fmt: skip
        last = {steps[0]: means[0], steps[-1]: means[-1]}
        for step, mean in last.items():
            axes.annotate(f"{mean:.2f}", (step, mean), textcoords="offset points", xytext=(8, -15), color=_INK)
    if base and "all" in base.accuracy:
        mean = base.accuracy["all"].mean
        axes.axhline(mean, color=_GRAY, linestyle="--", linewidth=1.4, label=f"base model, {mean:.2f}")
    num = points[-1].num_questions if points else 0
    _format_axes(axes, f"Accuracy, {num} questions, 95 % intervals", "accuracy", steps)
    if points or base:
        axes.legend(frameon=False, loc="upper left")


def _format_axes(axes: Axes, title: str, label: str, steps: Sequence[int]) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    axes.set_ylim(min(-0.03, low), max(1.03, high))
    if steps:
        room = max(1.0, 0.06 * (steps[-1] - steps[0]))
        axes.set_xlim(steps[0] - room / 2, steps[-1] + room)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def smooth(values: Sequence[float], weight: float = 0.6) -> list[float]:
    """Compute the bias-corrected exponential moving average s_i = Σ_j w^(i-j) v_j / Σ_j w^(i-j) over j <= i.

    Args:
        values: Values by step.
        weight: Weight w of the past, 0 to 1.
    """
    smoothed = []
    total = norm = 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1.0
        smoothed.append(total / norm)
    return smoothed
