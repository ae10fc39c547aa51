"""The comparison of runs as one HTML page that opens from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.observability.compare_plot import COLORS
from rl.observability.comparison import Setting, curve_of
from rl.observability.page import pack_json, read_asset, render_page

if TYPE_CHECKING:
    from rl.observability.compare import ComparisonTable

_SCRIPT = Path(__file__).with_name("compare_page.js")
_STYLE = """
#page{max-width:1180px;margin:0 auto;padding:20px 24px 40px}
.charts{display:grid;gap:18px 28px;margin:14px 0 26px}
@media(min-width:900px){.charts{grid-template-columns:repeat(2,minmax(0,1fr))}}
.chart h2{margin:0 0 2px;font-size:13px;overflow-wrap:anywhere}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;color:var(--muted)}
.key i{display:inline-block;width:18px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle}
.table{overflow-x:auto;margin-bottom:10px}
.table td,.table th{white-space:nowrap}
p{color:var(--muted);max-width:80ch}
"""


def write_comparison_page(
    settings: Sequence[Setting],
    metrics: Sequence[str],
    tables: Sequence[ComparisonTable],
    notes: Sequence[str],
    path: Path,
) -> None:
    """Write the page.

    Args:
        settings: From `rl.observability.comparison.read_settings`.
        metrics: A chart for each.
        tables: Shown below the charts.
        notes: Sentences below the tables.
        path: The file to write.
    """
    content = {
        "settings": [
            {"label": setting.label, "runs": len(setting.runs), "color": COLORS[number % len(COLORS)]}
            for number, setting in enumerate(settings)
        ],
        "charts": [chart for metric in metrics if (chart := _chart(settings, metric))["x"]],
        "tables": [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in tables],
        "notes": list(notes),
    }
    title = " and ".join(setting.label for setting in settings)
    script = read_asset("charts.js") + _SCRIPT.read_text(encoding="utf-8")
    with path.open("wb") as stream:
        stream.writelines(
            render_page(
                f"Comparison of {title}",
                script=script,
                style=read_asset("charts.css") + _STYLE,
                chunks=[("comparison", pack_json(content))],
            )
        )


def _chart(settings: Sequence[Setting], metric: str) -> dict[str, Any]:
    """One metric: the steps of all settings, and each setting's values at them, null where it has none."""
    curves = [curve_of(setting, metric) for setting in settings]
    steps = sorted({step for curve in curves for step in curve.steps})
    lines = []
    for number, (setting, curve) in enumerate(zip(settings, curves, strict=True)):
        if not curve.steps:
            continue
        place = {step: i for i, step in enumerate(curve.steps)}

        def spread(values: list[float], place: dict[int, int] = place) -> list[float | None]:
            return [values[place[step]] if step in place else None for step in steps]

        line = {"label": setting.label, "values": spread(curve.mean), "color": COLORS[number % len(COLORS)]}
        if curve.low:
            line |= {"low": spread(curve.low), "high": spread(curve.high)}
        lines.append(line)
    return {"title": metric, "x": steps, "lines": lines}
