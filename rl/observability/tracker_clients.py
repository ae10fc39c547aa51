"""TensorBoard, Weights & Biases, MLflow, SwanLab and Trackio behind `rl.observability.trackers.Tracker`.

Each is optional and imported when a run starts it. Addresses and accounts are those of the library's own settings
(`wandb login`, `MLFLOW_TRACKING_URI`, `swanlab login`, `TRACKIO_SPACE_ID`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl.config.keys import key_paths, plain_mapping, value_at
from rl.config.kinds import TrackerName
from rl.config.schema import Config
from rl.observability.run_directory import RunDirectory
from rl.observability.tracker_table import COLUMNS, Row

if TYPE_CHECKING:
    from rl.observability.trackers import Tracker

_NOT_IN_MLFLOW = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow refuses in a name, such as the @ of mean@4."""
_MLFLOW_CHUNK = 1000
"""Most metrics of one call to MLflow; 100 for parameters."""
_LONGEST_PARAMETER = 6000


class TensorBoard:
    """Event files in the run directory."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter  # tensorboard is optional

        self._writer = SummaryWriter(str(directory.tensorboard), flush_secs=10)
        lines = [f"| `{path}` | `{value_at(config, path)}` |" for path in key_paths(Config)]
        self._writer.add_text("config", "\n".join(["| key | value |", "|---|---|", *lines]), 0)

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Add a scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Add a text for each trajectory; TensorBoard has no tables with long texts."""
        for number, row in enumerate(rows, start=1):
            self._writer.add_text(f"{name}/{number}", _as_markdown(row), step)

    def close(self, *, has_succeeded: bool) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run with its files in the run directory."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=_project(config),
            name=_run_name(directory, config),
            dir=str(directory.path),
            config=plain_mapping(config),
            mode="offline" if config.megatron_training.trackers_offline else None,
            settings=wandb.Settings(console="off"),  # the progress bar stays untouched; logs are in the run directory
        )

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        self._run.log(dict(metrics), step=step)

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Log a table."""
        table = self._wandb.Table(columns=list(COLUMNS), data=[[row[column] for column in COLUMNS] for row in rows])
        self._run.log({name: table}, step=step)

    def close(self, *, has_succeeded: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if has_succeeded else 1)


class MLflow:
    """An MLflow run, in the database `mlflow.db` of the output folder where no server is set.

    A name's characters that MLflow refuses become `_`: `mean@4` is `mean_4`.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # by default it tries for minutes
        import mlflow
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks of what it raises
        logging.getLogger("alembic").setLevel(logging.WARNING)

        self._entities = mlflow.entities
        base = directory.path.parent
        is_set = mlflow.is_tracking_uri_set()
        self._client = MlflowClient(None if is_set else f"sqlite:///{base / 'mlflow.db'}")
        project = _project(config)
        experiment = self._client.get_experiment_by_name(project)
        self._experiment = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(project, None if is_set else (base / "mlflow_artifacts").as_uri())
        )
        run = self._client.create_run(self._experiment, run_name=_run_name(directory, config))
        self._run: str = run.info.run_id
        parameters = [
            self._entities.Param(path, str(value_at(config, path))[:_LONGEST_PARAMETER]) for path in key_paths(Config)
        ]
        for start in range(0, len(parameters), 100):
            self._client.log_batch(self._run, params=parameters[start : start + 100])

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Log the metrics in batches."""
        made = [
            self._entities.Metric(_NOT_IN_MLFLOW.sub("_", name), value, int(seconds * 1000), step)
            for name, value in metrics.items()
        ]
        for start in range(0, len(made), _MLFLOW_CHUNK):
            self._client.log_batch(self._run, metrics=made[start : start + _MLFLOW_CHUNK])

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Log a table as an artifact of its own."""
        columns = {column: [row[column] for row in rows] for column in COLUMNS}
        self._client.log_table(self._run, columns, f"{name}_{step:06d}.json")

    def close(self, *, has_succeeded: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run, "FINISHED" if has_succeeded else "FAILED")


class SwanLab:
    """A SwanLab experiment with its files in the run directory."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        import swanlab

        self._swanlab = swanlab
        folder = directory.path / "swanlab"
        folder.mkdir()
        self._run: Any = swanlab.init(
            project=_project(config),
            name=_run_name(directory, config),
            log_dir=str(folder),
            config=plain_mapping(config),
            mode="offline" if config.megatron_training.trackers_offline else None,
        )

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        self._run.log(dict(metrics), step=step)

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Log a text for each trajectory."""
        texts = [self._swanlab.Text(_as_markdown(row), caption=str(row["id"])) for row in rows]
        self._run.log({name: texts}, step=step)

    def close(self, *, has_succeeded: bool) -> None:
        """End the experiment."""
        state, error = ("success", None) if has_succeeded else ("crashed", "the run did not finish")
        self._run.finish(state=state, error=error)


class Trackio:
    """A Trackio run, in Trackio's folder on this machine where no Space is set."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        import trackio

        self._trackio = trackio
        self._run: Any = trackio.init(
            project=_project(config), name=_run_name(directory, config), config=plain_mapping(config), embed=False
        )

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        self._run.log(dict(metrics), step=step)

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Log a table."""
        data = [[row[column] for column in COLUMNS] for row in rows]
        self._run.log({name: self._trackio.Table(columns=list(COLUMNS), data=data)}, step=step)

    def close(self, *, has_succeeded: bool) -> None:
        """End the run."""
        self._run.finish()


@dataclass(slots=True, frozen=True)
class Client:
    """How to start a tracker."""

    package: str
    """The package to install, and the module to import."""
    open: Callable[[RunDirectory, Config], Tracker]
    advice: str
    """What to do where it does not start."""


CLIENTS: dict[TrackerName, Client] = {
    TrackerName.TENSORBOARD: Client("tensorboard", TensorBoard, "See to the disk."),
    TrackerName.WANDB: Client("wandb", WeightsAndBiases, "Run `wandb login`, or set trackers_offline=true."),
    TrackerName.MLFLOW: Client("mlflow", MLflow, "See to the server of MLFLOW_TRACKING_URI."),
    TrackerName.SWANLAB: Client("swanlab", SwanLab, "Run `swanlab login`, or set trackers_offline=true."),
    TrackerName.TRACKIO: Client("trackio", Trackio, "See to the Space of TRACKIO_SPACE_ID, or to the disk."),
}


def _project(config: Config) -> str:
    return config.megatron_training.tracker_project or "turnwise"


def _run_name(directory: RunDirectory, config: Config) -> str:
    return config.megatron_training.tracker_run_name or directory.path.name


def _as_markdown(row: Row) -> str:
    """A row with its texts as code, so that nothing in them is markup."""
    head = ", ".join(f"{name}: {row[name]}" for name in COLUMNS if name not in ("prompt", "response", "expected"))
    texts = [f"**{name}**\n\n{_fenced(str(row[name]))}" for name in ("expected", "prompt", "response")]
    return "\n\n".join([_fenced(head), *texts])


def _fenced(text: str) -> str:
    """Text in a fence longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
