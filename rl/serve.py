"""The service: the training loop, with clients' rollouts as its source of groups."""

from __future__ import annotations

import logging
import os
import shutil
import time
from functools import partial
from pathlib import Path

from rl.cluster.serve_launch import ServiceHandle, launch_service
from rl.cluster.served_rollouts import ServedRollouts, TrainingEndedByClientError
from rl.config.changes import with_changes
from rl.config.model_folder import STATE_FILES
from rl.config.problems import raise_errors
from rl.config.schema import Config
from rl.config.validate import find_problems
from rl.errors import TurnwiseError
from rl.interfaces import Actor
from rl.observability.log import console
from rl.observability.run_directory import RunDirectory
from rl.preflight import preflight_service
from rl.run.run import Run
from rl.serving.job import JobRequest
from rl.train import train

logger = logging.getLogger(__name__)

_LINGER_S = 3.0
"""Seconds in which clients can still hear why the training failed."""


def main(config: Config, name: str) -> None:
    """Serve the model and train on what clients do with it, until Ctrl-C.

    Args:
        config: The composed configuration.
        name: Name of the configuration, for the run directories.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    config, journal = _from_the_journal(config)
    preflight_service(config)
    directory: RunDirectory | None = RunDirectory.create(config, name)
    assert directory is not None, "it was just created"
    with launch_service(config, log_directory=directory.logs) as service:
        console().print(f"serving at {service.address}/v1, page at {service.address}/", highlight=False)
        if config.megatron_training.resume or journal:
            service.front.begin_native()
        while True:
            job = service.front.next_job()
            try:
                changed = _config_of(config, job)
            except TurnwiseError as problem:
                service.front.refuse_job(problem)
                continue
            run_job(changed, service, name if directory else f"{name}-{job.name}", directory, journal)
            directory = journal = None


def run_job(
    config: Config, service: ServiceHandle, name: str, directory: RunDirectory | None, journal: Path | None = None
) -> None:
    """Train until the steps are done or a client ends it; the model stays served.

    Args:
        config: The training's.
        service: The engines and the clients.
        name: Names the run directory.
        directory: A run directory that was made before.
        journal: Groups of a run that died before its first checkpoint.
    """
    step = 0
    try:
        with (
            Run.open(config, name, directory) as run,
            service.training(config, run.directory.path, run.progress.groups) as (actor, rollouts),
            run.watching(rollouts),
        ):
            rollouts.on_save = partial(_save_for_client, run, actor, rollouts)
            if journal is not None:
                rollouts.recover(journal)
            try:
                train(config, run, actor, rollouts, [])
                step = rollouts.step + 1
            except TrainingEndedByClientError:
                step = rollouts.step
                _saved(run, actor, rollouts)
    except Exception as failure:
        service.front.end_job(step, str(failure) or type(failure).__name__)
        time.sleep(_LINGER_S)
        raise
    service.front.end_job(step, None)


def _saved(run: Run, actor: Actor, rollouts: ServedRollouts) -> Path:
    """The checkpoint of the current weights."""
    there = run.directory.checkpoint(rollouts.step)
    return there if there.is_dir() else run.save(rollouts.step, actor, rollouts)


def _save_for_client(run: Run, actor: Actor, rollouts: ServedRollouts, name: str) -> Path:
    """A Hugging Face folder with the current weights, which stays when the checkpoint is removed as too old."""
    checkpoint, folder = _saved(run, actor, rollouts), run.directory.path / "saved" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in STATE_FILES:
            os.link(file, folder / file.name)
    return folder


def _from_the_journal(config: Config) -> tuple[Config, Path | None]:
    """A run that died before its first checkpoint is begun anew, with the groups that it had acknowledged."""
    source = config.megatron_training.resume
    if (
        not source
        or not (journal := Path(source) / "journal").is_dir()
        or RunDirectory(Path(source)).latest_checkpoint()
    ):
        return config, None
    return with_changes(config, {"megatron_training.resume": None}), journal


def _config_of(config: Config, job: JobRequest) -> Config:
    changed = with_changes(config, job.changes)
    if job.changes:
        raise_errors(find_problems(changed))
    return changed
