"""Several runs side by side: which are seeds of one setting, and their curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

from rl.config.keys import plain_mapping
from rl.errors import ConfigError, DataError
from rl.observability.curves import SMOOTHED_FROM, smooth
from rl.observability.run_directory import RunDirectory

_SAME_SETTING = (
    "megatron_training.seed", "megatron_training.run_name", "megatron_training.output_dir", "megatron_training.resume",
    "megatron_training.resume_mode", "megatron_training.save_interval", "megatron_training.max_checkpoints",
    "megatron_training.best_metric", "megatron_training.record_tokens_every",
    "megatron_training.eval_interval", "megatron_training.eval_before_train", "megatron_training.eval_after_train",
    "megatron_training.tracker*", "megatron_training.prometheus_*", "megatron_training.early_warning*",
    "megatron_training.profile_step", "rl_config.in_process", "rl_config.ray_address",
)  # fmt: skip
"""Patterns of keys that do not change what a run learns, and the seed."""
_DEFAULT_METRICS = (
    "val-core/all/acc/mean@*", "critic/score/mean", "response_length/mean", "actor/entropy", "actor/grad_norm",
    "num_turns/mean", "actor/loss", "actor/lr",
)  # fmt: skip
_NUM_DEFAULTS = 6
_LONGEST_LABEL = 32


@dataclass(slots=True, frozen=True)
class ComparedRun:
    """One run."""

    name: str
    directory: RunDirectory
    config: dict[str, Any]
    """Values by dotted key; old keys under their new names, absent ones as their defaults."""
    curves: dict[str, dict[int, float]]
    """Values by metric and step."""

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.config["megatron_training.seed"]

    @property
    def last_step(self) -> int:
        """Completed steps."""
        return max((step for curve in self.curves.values() for step in curve), default=0)


@dataclass(slots=True, frozen=True)
class Setting:
    """The runs whose configurations differ in nothing but the seed and where they write."""

    label: str
    runs: list[ComparedRun]

    def with_metric(self, metric: str) -> list[ComparedRun]:
        """The runs that have a metric."""
        return [run for run in self.runs if metric in run.curves]


@dataclass(slots=True, frozen=True)
class Curve:
    """A metric of one setting over the steps."""

    steps: list[int]
    """Steps that all its runs have."""
    mean: list[float]
    low: list[float]
    """Ends of the band: the smallest and the largest value of several runs, or the 95 % interval over questions of the
    accuracy of one run; empty without a band."""
    high: list[float]


def read_settings(paths: Sequence[Path]) -> tuple[list[Setting], list[str]]:
    """Read runs and group the seeds of a setting.

    Args:
        paths: Run directories.

    Returns:
        The settings, in the order in which their first runs are given, and notes for the reader.

    Raises:
        DataError: A path is not a run directory, has no metrics yet, or a file of it is malformed.
    """
    runs = [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    runs, notes = _without_resumed(runs)
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(_own_keys(run).items())), []).append(run)
    found = list(groups.values())
    labels = _labels(found)
    for label, members in zip(labels, found, strict=True):
        seeds = [run.seed for run in members]
        lengths = sorted({run.last_step for run in members})
        if len(lengths) > 1:
            ends = ", ".join(map(str, lengths))
            notes.append(f"{label}: its runs end after {ends} steps; each final value is that of the run's own end.")
        if len(set(seeds)) < len(seeds):
            notes.append(f"{label}: some of its runs have the same seed, so its interval over runs is too narrow.")
    return [Setting(label, members) for label, members in zip(labels, found, strict=True)], notes


def differing_keys(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Keys in which settings differ, with the value in each as text."""
    keys = sorted({key for setting in settings for key in _own_keys(setting.runs[0])})
    rows = {key: [_shown(setting.runs[0].config.get(key)) for setting in settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def choose_metrics(settings: Sequence[Setting], wanted: Sequence[str]) -> list[str]:
    """The metrics to compare.

    Args:
        settings: From `read_settings`.
        wanted: Names, or patterns such as `tools/*/errors`; empty for the usual ones.

    Raises:
        DataError: No run has a wanted metric.
    """
    known = sorted({metric for setting in settings for run in setting.runs for metric in run.curves})
    chosen: list[str] = []
    for name in wanted or _DEFAULT_METRICS:
        matching = [name] if name in known else [metric for metric in known if fnmatchcase(metric, name)]
        if wanted and not matching:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise DataError(
                f"--metrics: no run has '{name}'.{hint} The names are in metrics.jsonl and docs/metrics.md."
            )
        chosen += [metric for metric in matching if metric not in chosen]
    return chosen if wanted else chosen[:_NUM_DEFAULTS]


def curve_of(setting: Setting, metric: str) -> Curve:
    """Mean and band of the setting's runs, at the steps that all of them have."""
    runs = setting.with_metric(metric)
    curves = [smoothed_curve(run, metric) for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in common]
    mean = [math.fsum(v) / len(v) for v in values]
    if len(runs) > 1:
        return Curve(common, mean, [min(v) for v in values], [max(v) for v in values])
    low, high = ([run.curves.get(name, {}) for run in runs] for name in interval_metrics(metric))
    if all(step in end for step in common for end in (*low, *high)):
        return Curve(common, mean, [low[0][step] for step in common], [high[0][step] for step in common])
    return Curve(common, mean, [], [])


def interval_metrics(metric: str) -> tuple[str, str]:
    """The metrics with the ends of an accuracy's 95 % interval over questions, where an evaluation has them."""
    base = metric.rpartition("/")[0]
    return f"{base}/ci95_low", f"{base}/ci95_high"


def smoothed_curve(run: ComparedRun, metric: str) -> dict[int, float]:
    """A run's values by step, smoothed where `rl report` smooths its curves; evaluations stay as they are."""
    curve = run.curves[metric]
    steps = sorted(curve)
    if len(steps) < SMOOTHED_FROM or is_evaluation(metric):
        return {step: curve[step] for step in steps}
    return dict(zip(steps, smooth([curve[step] for step in steps]), strict=True))


def is_evaluation(metric: str) -> bool:
    """Whether a metric is measured by evaluations, and not at every step."""
    return metric.startswith("val-")


def _read_run(path: Path, name: str) -> ComparedRun:
    directory = RunDirectory.open(path)
    try:
        config = directory.read_config()
    except ConfigError as error:
        raise DataError(f"{directory.config_file}: cannot be read ({error!s:.200}). Restore the file.") from error
    curves: dict[str, dict[int, float]] = {}
    for row in directory.read_metrics():
        for metric, value in row.items():
            if metric not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(metric, {})[int(row["step"])] = float(value)
    if not curves:
        raise DataError(f"{directory.metrics_file}: no metrics yet. Wait for the first step, or leave this run out.")
    return ComparedRun(name, directory, dict(_flat(plain_mapping(config))), curves)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders, with as many parents as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)) and len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _without_resumed(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[str]]:
    """Leave out runs given twice, and those that another run continues: it has their steps."""
    unique = list({run.directory.path.resolve(): run for run in runs}.values())
    sources = {}
    for run in unique:
        if source := run.config["megatron_training.resume"]:
            folder = Path(source).resolve()
            sources[folder.parent.parent if folder.parent.name == "checkpoints" else folder] = run.name
    kept = [run for run in unique if run.directory.path.resolve() not in sources]
    notes = [
        f"{run.name}: left out, since {sources[path]} resumes it and has its steps."
        for run in unique
        if (path := run.directory.path.resolve()) in sources
    ]
    return kept, notes


def _own_keys(run: ComparedRun) -> dict[str, Any]:
    return {
        key: value
        for key, value in run.config.items()
        if not any(fnmatchcase(key, pattern) for pattern in _SAME_SETTING)
    }


def _labels(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    """Short labels, all different: the run's name; for seeds the keys that differ, or what their names begin with."""
    if all(len(members) == 1 for members in groups):
        return [members[0].name for members in groups]
    keys = sorted({key for members in groups for key in _own_keys(members[0])})
    values = {key: [_shown(members[0].config.get(key)) for members in groups] for key in keys}
    differing = {key.rpartition(".")[2]: shown for key, shown in values.items() if len(set(shown)) > 1}
    labels = [", ".join(f"{key}={shown[i]}" for key, shown in differing.items()) for i in range(len(groups))]
    if not differing or max(map(len, labels)) > _LONGEST_LABEL:
        labels = [_beginning([run.name for run in members]) for members in groups]
    return labels if len(set(labels)) == len(labels) else [f"setting {i}" for i in range(1, len(groups) + 1)]


def _beginning(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same).rstrip("-_. ").removesuffix("seed").rstrip("-_. ")


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text if len(text) <= 60 else f"...{text[-57:]}"
