"""Destinations of metrics: always metrics.jsonl, optionally TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from rl.config.keys import plain_mapping
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.observability.run_directory import RunDirectory


class Tracker(Protocol):
    """One destination of metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics after `step` completed steps."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class JsonLines:
    """One JSON object per line: `step`, `time` (seconds since 1970) and the metrics. NaN and Inf become null."""

    def __init__(self, directory: RunDirectory) -> None:
        self._stream = directory.metrics_file.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line and flush it, so that a killed run keeps it."""
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._stream.write(json.dumps({"step": step, "time": round(time.time(), 3), **numbers}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, directory: RunDirectory) -> None:
        from torch.utils.tensorboard import SummaryWriter  # tensorboard is optional

        self._writer = SummaryWriter(str(directory.tensorboard), flush_secs=10)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run with its files in the run directory."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        import wandb

        rl = config.rl_config
        self._run: Any = wandb.init(
            project=rl.wandb_project or "turnwise",
            name=rl.wandb_exp_name or directory.path.name,
            dir=str(directory.path),
            config=plain_mapping(config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MetricsWriter:
    """Writes metrics to all configured trackers of a run.

    Raises:
        ConfigError: A configured tracker is not installed.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        check_trackers(config)
        self._trackers: list[Tracker] = [JsonLines(directory)]
        if config.rl_config.use_tensorboard:
            self._trackers.append(TensorBoard(directory))
        if config.rl_config.use_wandb:
            self._trackers.append(WeightsAndBiases(directory, config))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics after `step` completed steps to every tracker."""
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def close(self) -> None:
        """Close every tracker."""
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_trackers(config: Config) -> None:
    """Check that the packages of the configured trackers are installed.

    Raises:
        ConfigError: A package is missing.
    """
    for key, package in {"use_tensorboard": "tensorboard", "use_wandb": "wandb"}.items():
        if getattr(config.rl_config, key) and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"rl_config.{key}: needs the package {package}, which is not installed. "
                f"Run `pip install {package}`, or set {key}=false."
            )
