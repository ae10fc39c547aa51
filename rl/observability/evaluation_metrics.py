"""Figures of one evaluation: per set and data source, as records, metrics and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rl.batches import GroupHeader
from rl.observability.accuracy import Estimate, best_at, estimate_mean, is_correct, majority_at, sample_numbers
from rl.observability.terminal import visible
from rl.types import INFRASTRUCTURE_FAILURES


@dataclass(slots=True, frozen=True)
class Figures:
    """Accuracy and rewards on some questions of an evaluation.

    A trajectory is correct when the first reward of `verifier_function` gave it 1. One without a score is not.
    """

    name: str
    """`all`; with one set a data source; with several a set, or `<set>/<source>`."""
    is_set: bool
    """It is one of several sets."""
    num_questions: int
    num_samples: int
    """Trajectories of a question; the k of mean@k."""
    mean: Estimate
    """mean@k: mean over questions of the share of correct trajectories."""
    best: dict[int, Estimate]
    """best@n by n: how likely it is that one of n trajectories is correct."""
    majority: dict[int, Estimate]
    """maj@n by n: how likely it is that the most frequent answer of n trajectories is correct."""
    rewards: dict[str, float]
    """Mean of each reward; 0 where there is none."""


def summarize(groups: Sequence[GroupHeader]) -> list[Figures]:
    """Compute the figures of an evaluation.

    Args:
        groups: A scored group for each question; those without trajectories are left out.

    Returns:
        Figures of all questions, then with one set those of each data source, with several those of each set and of
        the sources of a set that has more than one. Empty without trajectories.
    """
    questions = [_question(group) for group in groups if group.trajectories]
    names = {str(question.group.prompt.evaluation_set) for question in questions}
    sets = names if len(names) > 1 else set()
    return [_figures(name, members, is_set=name in sets) for name, members in _partition(questions).items()]


def evaluation_metrics(groups: Sequence[GroupHeader], rows: Sequence[Figures]) -> dict[str, float]:
    """Metrics of an evaluation under verl's names.

    Args:
        groups: A scored group for each question.
        rows: From `summarize`.

    Returns:
        `val-core/<name>/*` for the names of `Figures`, with best@n and maj@n of n below k under `val-aux/<name>/*`;
        `val-aux/*` on lengths, tool use and failures. Empty without trajectories.
    """
    metrics: dict[str, float] = {}
    for figures in rows:
        metrics |= _metrics_of(figures)
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return {}
    metrics["val-aux/num_turns/mean"] = _mean([float(len(t.turn_tokens)) for t in trajectories])
    metrics["val-aux/tool_call_counts/mean"] = _mean([float(t.num_tool_calls) for t in trajectories])
    metrics["val-aux/response_length/mean"] = _mean([float(t.response_length) for t in trajectories])
    metrics["val-aux/infrastructure_failures"] = float(
        sum(t.stop_reason in INFRASTRUCTURE_FAILURES for t in trajectories)
    )
    metrics["val-aux/reward_errors"] = float(sum(t.reward_error is not None for t in trajectories))
    return metrics


def describe(figures: Figures) -> str:
    """Figures in a line, as in `accuracy 0.625 on 8 questions, 95 % interval 0.306 to 0.863`."""
    mean, n = figures.mean, figures.num_samples
    questions = f"{figures.num_questions} question{'s' if figures.num_questions > 1 else ''}"
    text = f"accuracy {mean.value:.3f} on {questions}, 95 % interval {mean.low:.3f} to {mean.high:.3f}"
    return f"{text}, best@{n} {figures.best[n].value:.3f}, maj@{n} {figures.majority[n].value:.3f}" if n > 1 else text


def set_rows(rows: Sequence[Figures]) -> list[Figures]:
    """The figures of each set where there are several, then those of all questions."""
    return [*(row for row in rows[1:] if row.is_set), *rows[:1]]


def figures_table(rows: Sequence[Figures]) -> Table:
    """A table with a row for each entry of `summarize`; the first, of all questions, stands last."""
    num_samples = max((row.num_samples for row in rows), default=1)
    table = Table(
        title="Accuracy (95 % interval)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("questions", overflow="fold")
    names = [f"{kind}@{num_samples}" for kind in (("mean", "best", "maj") if num_samples > 1 else ("mean",))]
    for column in ("num", *names):
        table.add_column(column, justify="right", no_wrap=True)
    for row in [*rows[1:], *rows[:1]]:
        if row is rows[0] and len(rows) > 1:
            table.add_section()
        cells = [row.mean, *(kind[row.num_samples] for kind in (row.best, row.majority) if kind)]
        texts = [interval_text(cell) for cell in cells]
        table.add_row(Text(visible(row.name)), str(row.num_questions), *texts, style="bold" if row is rows[0] else None)
    return table


def interval_text(estimate: Estimate) -> str:
    """An estimate as `0.62 (0.55-0.69)`."""
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


@dataclass(slots=True, frozen=True)
class _Question:
    """What one question adds to the figures."""

    group: GroupHeader
    mean: float
    best: dict[int, float]
    majority: dict[int, float]


def _question(group: GroupHeader) -> _Question:
    correct = [float(is_correct(t.rewards, t.reward_error)) for t in group.trajectories]
    answers, numbers = [t.answer for t in group.trajectories], sample_numbers(len(correct))
    best = {n: best_at(n, correct) for n in numbers}
    return _Question(group, _mean(correct), best, {n: majority_at(n, answers, correct) for n in numbers})


def _partition(questions: Sequence[_Question]) -> dict[str, list[_Question]]:
    if not questions:
        return {}
    parts: dict[str, list[_Question]] = {"all": list(questions)}
    sets = list(dict.fromkeys(question.group.prompt.evaluation_set for question in questions))
    for one in sets:
        members = [question for question in questions if question.group.prompt.evaluation_set == one]
        sources = sorted({question.group.prompt.data_source for question in members})
        if len(sets) > 1:
            parts[str(one)] = members
        if len(sets) == 1 or len(sources) > 1:
            for source in sources:
                name = source if len(sets) == 1 else f"{one}/{source}"
                # a source named `all` would hide the figures over all sources
                parts.setdefault(name, [q for q in members if q.group.prompt.data_source == source])
    return parts


def _figures(name: str, questions: Sequence[_Question], *, is_set: bool) -> Figures:
    groups = [question.group for question in questions]
    num_samples = max(len(group.trajectories) for group in groups)
    numbers = [n for n in questions[0].best if all(n in question.best for question in questions)]
    names = sorted({reward for g in groups for t in g.trajectories for reward in t.rewards})
    return Figures(
        name,
        is_set,
        len(groups),
        num_samples,
        estimate_mean([question.mean for question in questions], num_samples),
        {n: estimate_mean([question.best[n] for question in questions], num_samples // n) for n in numbers},
        {n: estimate_mean([question.majority[n] for question in questions], num_samples // n) for n in numbers},
        {n: _mean([_mean([t.rewards.get(n, 0.0) for t in g.trajectories]) for g in groups]) for n in names},
    )


def _metrics_of(figures: Figures) -> dict[str, float]:
    k, key = figures.num_samples, f"val-core/{figures.name}"
    metrics = {
        f"{key}/acc/mean@{k}": figures.mean.value,
        f"{key}/acc/ci95_low": figures.mean.low,
        f"{key}/acc/ci95_high": figures.mean.high,
        f"{key}/num_questions": float(figures.num_questions),
    }
    metrics |= {f"{key}/{name}/mean@{k}": value for name, value in figures.rewards.items()}
    for kind, estimates in (("best", figures.best), ("maj", figures.majority)):
        for n, estimate in estimates.items():
            if n == max(estimates):
                metrics[f"{key}/acc/{kind}@{n}/mean"] = estimate.value
                metrics[f"{key}/acc/{kind}@{n}/ci95_low"] = estimate.low
                metrics[f"{key}/acc/{kind}@{n}/ci95_high"] = estimate.high
            else:
                metrics[f"val-aux/{figures.name}/acc/{kind}@{n}/mean"] = estimate.value
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
