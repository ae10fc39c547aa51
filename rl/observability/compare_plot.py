"""The curves of several runs over each other, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl.observability.comparison import Setting, curve_of, smoothed_curve

COLORS = ("#1f6fb2", "#d9731a", "#2a9d5c", "#9356c4", "#c43c56", "#17909c", "#8a7a12", "#6b7280")
"""One for each setting, repeated after eight with another line style; the page has the same."""
_STYLES = ("-", "--", ":")
_INK, _MUTED, _RULE = "#222222", "#646c77", "#e4e4e4"
_COLUMNS = 2
_FEW_POINTS = 40
"""Up to so many steps each is marked."""


def draw_comparison(settings: Sequence[Setting], metrics: Sequence[str], path: Path) -> None:
    """Draw a chart for each metric: the mean of each setting, the range of its runs, and thin lines for the runs.

    Args:
        settings: From `rl.observability.comparison.read_settings`.
        metrics: Names of metrics.
        path: The picture to write; its suffix tells the format.
    """
    columns = min(_COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(5.6 * columns, 2.9 * rows + 0.5), dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, metric in enumerate(metrics):
        _draw_metric(axes[number // columns][number % columns], settings, metric)
    for unused in axes.flat[len(metrics) :]:
        unused.set_visible(False)
    handles: dict[str, Artist] = {}
    for one in axes.flat:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=3, frameon=False, fontsize=10)
    figure.savefig(path, facecolor="white")


def _draw_metric(axes: Axes, settings: Sequence[Setting], metric: str) -> None:
    for number, setting in enumerate(settings):
        color, style = COLORS[number % len(COLORS)], _STYLES[number // len(COLORS) % len(_STYLES)]
        runs = setting.with_metric(metric)
        curve = curve_of(setting, metric)
        if not runs:
            continue
        for run in runs:
            own = smoothed_curve(run, metric)
            if len(runs) > 1:
                axes.plot(list(own), list(own.values()), style, color=color, linewidth=0.7, alpha=0.55)
            elif len(own) < len(run.curves[metric]) or own != run.curves[metric]:
                raw = run.curves[metric]
                axes.plot(sorted(raw), [raw[step] for step in sorted(raw)], color=color, linewidth=0.7, alpha=0.35)
        label = setting.label if len(setting.runs) == 1 else f"{setting.label} ({len(setting.runs)} runs)"
        marker = "o" if len(curve.steps) <= _FEW_POINTS else None
        axes.plot(curve.steps, curve.mean, style, color=color, linewidth=2, marker=marker, markersize=3.5, label=label)
        if len(runs) > 1:
            axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
        elif curve.low:
            axes.vlines(curve.steps, curve.low, curve.high, color=color, linewidth=1.2)
    axes.set_title(metric, loc="left", fontsize=10.5, color=_INK)
    axes.set_xlabel("step", color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_RULE)
