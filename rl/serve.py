"""The service: the training loop, with clients' rollouts as its source of groups."""

from __future__ import annotations

import json
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
from rl.config.schema import Config, ResumeMode
from rl.config.validate import find_problems
from rl.errors import ConfigError, TurnwiseError
from rl.interfaces import Actor
from rl.observability.log import console, setup_logging
from rl.observability.run_directory import RunDirectory
from rl.preflight import preflight_service
from rl.run.checkpoints import find_checkpoint
from rl.run.run import Run, freeing_the_name
from rl.serving.job import JobRequest
from rl.train import train

logger = logging.getLogger(__name__)

_LINGER_S = 3.0
"""Seconds in which clients can still hear why the training failed."""
_TRAINING_FILE = "training.json"
"""Who began the training of a run directory."""


def main(config: Config, name: str) -> None:
    """Serve the model and train on what clients do with it, until Ctrl-C.

    Args:
        config: The composed configuration.
        name: Name of the configuration, for the run directories.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    config, journals = _resumed(config)
    preflight_service(config)
    directory: RunDirectory | None = RunDirectory.create(config, name)
    assert directory is not None, "it was just created"
    setup_logging(directory.log_file)  # Ray's own lines belong there too
    begins = bool(config.megatron_training.resume or journals)
    with freeing_the_name(directory), launch_service(config, log_directory=directory.logs, begins=begins) as service:
        console().print(f"serving at {service.address}/v1, page at {service.address}/", highlight=False)
        while True:
            job = service.front.next_job()
            if run_job(config, job, service, name, directory, journals):
                directory, journals = None, []
                config = _of_later_trainings(config)


def run_job(
    config: Config,
    job: JobRequest,
    service: ServiceHandle,
    name: str,
    directory: RunDirectory | None,
    journals: list[Path],
) -> bool:
    """Train until the steps are done or a client ends it; the model stays served.

    Args:
        config: The service's.
        job: What a client asked for.
        service: The engines and the clients.
        name: Names the run directory.
        directory: A run directory that was made before.
        journals: Those of the runs that are gone on with.

    Returns:
        Whether it began. A training that a protocol asked for and that cannot begin is refused.
    """
    rollouts: ServedRollouts | None = None
    try:
        config = _config_of(config, job)
        with (
            Run.open(config, name if directory else f"{name}-{job.name}", directory) as run,
            service.training(config, run.directory.path, run.progress.groups, journals) as (actor, rollouts),
            run.watching(rollouts),
        ):
            note = {"name": job.name, "is_native": job.is_native, "changes": dict(job.changes)}
            (run.directory.path / _TRAINING_FILE).write_text(json.dumps(note) + "\n", encoding="utf-8")
            rollouts.on_save = partial(_save_for_client, run, actor, rollouts)
            try:
                train(config, run, actor, rollouts, [])
                rollouts.step += 1
            except TrainingEndedByClientError:
                _saved(run, actor, rollouts)
            rollouts.serve_on()
    except Exception as failure:
        has_begun = rollouts is not None and rollouts.has_begun
        if isinstance(failure, TurnwiseError) and not has_begun and not job.is_native:
            logger.error("the training '%s' cannot begin: %s", job.name, failure)
            service.front.refuse_job(failure)
            return False
        service.front.end_job(rollouts.step if rollouts else 0, str(failure) or type(failure).__name__)
        time.sleep(_LINGER_S)
        raise
    service.front.end_job(rollouts.step, None)
    return True


def _saved(run: Run, actor: Actor, rollouts: ServedRollouts) -> Path:
    """The checkpoint of the current weights."""
    there = run.directory.checkpoint(rollouts.step)
    return there if there.is_dir() else run.save(rollouts.step, actor, rollouts)


def _save_for_client(run: Run, actor: Actor, rollouts: ServedRollouts, name: str) -> Path:
    """A Hugging Face folder with the current weights, which stays when the checkpoint is removed as too old."""
    checkpoint, folder = _saved(run, actor, rollouts), run.directory.saved / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in STATE_FILES:
            os.link(file, folder / file.name)
    return folder


def _resumed(config: Config) -> tuple[Config, list[Path]]:
    """The configuration with the checkpoint to go on with, and the journals of what came after it.

    A run that died before its first checkpoint leads to the one that it went on with, or to none.

    Raises:
        ConfigError: A protocol's client began the training; only that client could go on.
        CheckpointError: There is no such run.
    """
    journals: list[Path] = []
    source = None if config.megatron_training.resume_mode is ResumeMode.NEVER else config.megatron_training.resume
    while source:
        run = RunDirectory(Path(source))
        if (run.path / "run_state.json").is_file() or run.latest_checkpoint() or not run.config_file.is_file():
            checkpoint = find_checkpoint(run.path)
            _check_native(checkpoint.parent.parent)
            journals.insert(0, RunDirectory(checkpoint.parent.parent).journal)
            return with_changes(config, {"megatron_training.resume": str(checkpoint)}), journals
        _check_native(run.path)
        journals.insert(0, run.journal)
        source = run.read_config().megatron_training.resume
    return with_changes(config, {"megatron_training.resume": None}), journals


def _check_native(run: Path) -> None:
    file = run / _TRAINING_FILE
    note = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"is_native": True}
    if not note["is_native"]:
        raise ConfigError(
            f"megatron_training.resume: the training of {run} was begun by a client ('{note['name']}'), and only a "
            "client can begin it again. Set actor_config.load to its checkpoint to serve what it learned."
        )


def _of_later_trainings(config: Config) -> Config:
    """The configuration without what only the first training of a service has: its directory, and a checkpoint."""
    return with_changes(config, {"megatron_training.run_name": None, "megatron_training.resume": None})


def _config_of(config: Config, job: JobRequest) -> Config:
    changed = with_changes(config, job.changes)
    if job.changes:
        raise_errors(find_problems(changed))
    return changed
