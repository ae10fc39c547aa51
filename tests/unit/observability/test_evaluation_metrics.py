"""Figures of an evaluation: per set and source, with best@n and maj@n."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rl.batches import GroupHeader
from rl.observability.evaluation_metrics import describe, figures_table, set_rows, summarize
from rl.observability.evaluation_output import Output
from rl.observability.run_directory import RunDirectory
from rl.types import StopReason
from tests.samples import group_of
from tests.unit.observability.examples import evaluation_metrics_of, make_group, make_trajectory


def test_evaluation_metrics_per_source_and_over_all() -> None:
    groups = [make_group("gcd", score=1.0), make_group("lcm", score=1.0), make_group("lcm", score=0.5)]
    metrics = evaluation_metrics_of(groups)
    assert metrics["val-core/gcd/acc/mean@1"] == 1.0
    assert metrics["val-core/lcm/acc/mean@1"] == 0.5  # half a point is not correct
    assert metrics["val-core/lcm/right/mean@1"] == 0.75
    assert metrics["val-core/all/acc/mean@1"] == pytest.approx(2 / 3)
    assert metrics["val-core/all/num_questions"] == 3.0


def test_evaluation_metrics_average_the_samples_of_a_question_first() -> None:
    right, wrong = make_trajectory(score=1.0), make_trajectory(score=0.0, index=1)
    assert evaluation_metrics_of([group_of(right, wrong)])["val-core/all/acc/mean@2"] == 0.5


def test_evaluation_metrics_count_a_failed_reward_as_wrong() -> None:
    metrics = evaluation_metrics_of([make_group(score=None), make_group(score=1.0)])
    assert metrics["val-core/all/acc/mean@1"] == 0.5
    assert metrics["val-aux/reward_errors"] == 1.0


def test_evaluation_metrics_count_what_the_infrastructure_ended() -> None:
    reasons = [StopReason.DEADLINE, StopReason.TOOL_UNAVAILABLE, StopReason.LENGTH, StopReason.FINISHED]
    trajectories = [make_trajectory(stop_reason=reason, index=i) for i, reason in enumerate(reasons)]
    metrics = evaluation_metrics_of([group_of(*trajectories)])
    assert metrics["val-aux/infrastructure_failures"] == 2.0


def group_in(evaluation_set: str | None, source: str, *answers: str) -> GroupHeader:
    """A group whose samples box these answers; 4 is right."""
    trajectories = [make_trajectory(source, score=float(a == "4"), index=i) for i, a in enumerate(answers)]
    for trajectory, answer in zip(trajectories, answers, strict=True):
        trajectory.turns[-1].text = f"so \\boxed{{{answer}}}"
        trajectory.prompt = replace(trajectory.prompt, evaluation_set=evaluation_set)
    return group_of(*trajectories)


def test_evaluation_metrics_of_four_samples_have_best_and_majority() -> None:
    # one right in four, and three different answers; three right in four
    metrics = evaluation_metrics_of([group_in("eval", "gcd", "4", "5", "5", "6"), group_in("eval", "gcd", *"4445")])
    assert metrics["val-core/gcd/acc/mean@4"] == 0.5
    assert metrics["val-core/gcd/acc/best@4/mean"] == 1.0
    assert metrics["val-core/gcd/acc/maj@4/mean"] == 0.5  # 5 outvotes 4 in the first
    assert metrics["val-aux/gcd/acc/best@2/mean"] == pytest.approx((0.5 + 1.0) / 2)  # 1 - C(3,2)/C(4,2); 1
    # pairs of the first: three with the 4, each a tie of two: 3/6 * 1/2; of the second: three of 4 alone, three ties
    assert metrics["val-aux/gcd/acc/maj@2/mean"] == pytest.approx((0.25 + 0.75) / 2)
    assert metrics["val-core/gcd/acc/best@4/ci95_low"] == pytest.approx(0.34238, abs=1e-5)  # Wilson of 2 in 2
    assert "val-core/gcd/acc/best@2/mean" not in metrics


def test_evaluation_metrics_of_one_sample_have_neither() -> None:
    assert not [name for name in evaluation_metrics_of([make_group()]) if "best@" in name or "maj@" in name]


def test_evaluation_metrics_vote_with_normalized_answers() -> None:
    metrics = evaluation_metrics_of([group_in("eval", "gcd", "1,000", "1000", "4")])
    assert metrics["val-core/all/acc/maj@3/mean"] == 0.0  # 1,000 and 1000 are one answer
    assert metrics["val-core/all/acc/best@3/mean"] == 1.0


def test_evaluation_metrics_of_several_sets_are_named_after_sets() -> None:
    groups = [group_in("math", "gcd", "4"), group_in("math", "lcm", "5"), group_in("search", "gcd", "5")]
    names = [figures.name for figures in summarize(groups)]
    assert names == ["all", "math", "math/gcd", "math/lcm", "search"]
    metrics = evaluation_metrics_of(groups)
    assert [metrics[f"val-core/{name}/acc/mean@1"] for name in names] == [pytest.approx(1 / 3), 0.5, 1.0, 0.0, 0.0]
    assert metrics["val-core/math/num_questions"] == 2.0


def test_evaluation_metrics_of_one_set_are_named_after_sources() -> None:
    groups = [group_in("math", "gcd", "4"), group_in("math", "lcm", "5")]
    assert [figures.name for figures in summarize(groups)] == ["all", "gcd", "lcm"]


def test_figures_table_shows_sets_and_intervals() -> None:
    rows = summarize([group_in("math", "gcd", "4", "5"), group_in("search", "qa", "4", "4")])
    screen = Console(width=100, record=True, file=io.StringIO())
    screen.print(figures_table(rows))
    lines = [" ".join(line.split()) for line in screen.export_text().splitlines()]
    assert "questions num mean@2 best@2 maj@2" in lines
    assert "math 1 0.50 (0.05-0.95) 1.00 (0.21-1.00) 0.50 (0.05-0.95)" in lines
    # means 0.5 and 1: p 0.75, s² 1/16, so n_eff 1 + 3 = 4, as many as there are samples; for maj@2 at most 2
    assert "all 2 0.75 (0.30-0.95) 1.00 (0.34-1.00) 0.75 (0.20-0.97)" in lines


def test_figures_table_shows_any_name_as_it_is() -> None:
    names = ["a[/b]", "gsm8k [main]", "x\x1b[31mred"]
    screen = Console(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    screen.print(figures_table(summarize([make_group(name) for name in names])))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in text for name in ("a[/b]", "gsm8k [main]", "x␛[31mred"))
    assert "\x1b[31m" not in text


def test_json_is_written_before_anything_is_printed(tmp_path: Path) -> None:
    class Broken(Console):
        def print(self, *_: object, **__: object) -> None:
            raise BrokenPipeError

    run = RunDirectory(tmp_path)
    run.metrics_file.write_text('{"step": 0}\n')
    output = Output(Broken(), str(tmp_path / "figures.json"))
    with pytest.raises(BrokenPipeError):
        output.show(summarize([make_group("gcd")]), run, "m")
    assert json.loads((tmp_path / "figures.json").read_text())["figures"][0]["name"] == "all"


def test_describe_is_one_line_for_a_set() -> None:
    rows = summarize([group_in("math", "gcd", "4", "5"), group_in("search", "qa", "4", "4")])
    assert [row.name for row in set_rows(rows)] == ["math", "search", "all"]
    text = "accuracy 0.750 on 2 questions, 95 % interval 0.301 to 0.954, best@2 1.000, maj@2 0.750"
    assert describe(rows[0]) == text
    rows = summarize([group_in("math", "gcd", "4"), group_in("math", "lcm", "5")])
    assert [row.name for row in set_rows(rows)] == ["all"]
    assert describe(rows[0]) == "accuracy 0.500 on 2 questions, 95 % interval 0.095 to 0.905"


def test_summarize_without_trajectories_is_empty() -> None:
    assert summarize([]) == []
    assert evaluation_metrics_of([]) == {}
