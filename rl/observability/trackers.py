"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases as configured."""

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
    """One destination."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step (steps completed)."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class JsonLines:
    """One JSON object a line: `step`, `time` (seconds since 1970) and the metrics. Not-a-number becomes null."""

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
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard: only where it is wanted

        self._writer = SummaryWriter(str(directory.tensorboard), flush_secs=10)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run; its files lie in the run directory."""

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
    """All destinations of a run.

    Args:
        directory: The run's directory.
        config: Says which trackers are wanted.

    Raises:
        ConfigError: A wanted tracker is not installed.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        check_trackers(config)
        self._trackers: list[Tracker] = [JsonLines(directory)]
        if config.rl_config.use_tensorboard:
            self._trackers.append(TensorBoard(directory))
        if config.rl_config.use_wandb:
            self._trackers.append(WeightsAndBiases(directory, config))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give the metrics of a step to every tracker.

        Args:
            step: Steps completed.
            metrics: Name to number.
        """
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
    """Say before anything starts that a wanted tracker is missing.

    Raises:
        ConfigError: Names the key and the package.
    """
    wanted = {"use_tensorboard": "tensorboard", "use_wandb": "wandb"}
    for key, package in wanted.items():
        if getattr(config.rl_config, key) and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"rl_config.{key}: needs the package {package}, which is not installed. "
                f"Run `pip install {package}`, or set {key}=false."
            )
