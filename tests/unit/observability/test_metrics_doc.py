"""docs/metrics.md and the code name the same metrics."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from rl.observability.detectors import DETECTORS
from rl.observability.metrics import rollout_metrics, speed_metrics
from rl.serving.arbor.figures import Figures
from tests.samples import group_of
from tests.unit.observability.examples import evaluation_metrics_of, make_trajectory

ROOT = Path(__file__).parents[3]
METRIC = re.compile(
    r"(actor|critic|num_turns|perf|prompt_length|response_length|reward|rollout|rollout_corr|serve|stop_reason|timing_s"
    r"|tool_call_counts|tools|training|val-aux|val-core)(/[\w<>-]*[\w>])+(?<!_)(@\d+)?"
)
FAMILIES = ("critic/score", "critic/rewards", "critic/advantages")
"""Literals that are only the front of mean, max and min."""


@cache
def documented() -> set[str]:
    """Names of the tables' first column, with braces expanded."""
    names: set[str] = set()
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        if line.startswith("| `"):
            parts = re.split(r"\{(.*?)\}", line.split("`")[1])
            choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
            names |= {"".join(choice) for choice in product(*choices)}
    return names


@cache
def written_in_code() -> set[str]:
    """Metric names that stand in the code as literals, and the parts that the pages time."""
    names: set[str] = set()
    for path in (ROOT / "rl").rglob("*.py"):
        if {"bench", "integrations"} & set(path.parts):  # an integration has names of other programs
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value):
                names.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "time":
                names |= {f"timing_s/{a.value}" for a in node.args if isinstance(a, ast.Constant)}
    expanded = {f"{name}/{part}" for name in names & set(FAMILIES) for part in ("mean", "max", "min")}
    return names - set(FAMILIES) | expanded


@cache
def emitted() -> set[str]:
    groups = [group_of(*[make_trajectory("source", score=1.0, index=i) for i in range(4)])]
    warnings = {f"warnings/{name}" for name in DETECTORS}
    figures = Figures()
    figures.count("left_out/unknown")
    return {
        *figures.metrics(),
        *rollout_metrics(groups),
        *evaluation_metrics_of(groups),
        *speed_metrics(10, 5, 1.0, 1.0, 1),
        *warnings,
    }


@cache
def as_pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<\w+>", "[^/]+", name))


@pytest.mark.parametrize("name", sorted(emitted() | written_in_code()))
def test_metric_is_documented(name: str) -> None:
    assert any(as_pattern(known).fullmatch(name) for known in documented()), f"add {name} to docs/metrics.md"


@pytest.mark.parametrize("name", sorted(documented()))
def test_documented_metric_exists(name: str) -> None:
    names = emitted() | written_in_code()
    assert any(as_pattern(name).fullmatch(found) for found in names), f"nothing emits {name}"
