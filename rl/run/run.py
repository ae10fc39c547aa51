"""A run's lifecycle: its directory, resume, steps, evaluations, checkpoints, metrics and progress."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from rl.batches import GroupHeader, Recording, RunPlace
from rl.config.estimates import longest_response
from rl.config.load import save_resolved
from rl.config.model_folder import RUN_STATE_FILE
from rl.config.schema import Config, ResumeMode
from rl.errors import CheckpointError, StoppedError, TrainingError
from rl.interfaces import Actor, Checkpointed, DataPlace, Rollouts
from rl.observability.clock import wall_time
from rl.observability.evaluation_metrics import Figures, describe, evaluation_metrics, set_rows, summarize
from rl.observability.log import setup_logging
from rl.observability.metrics import speed_metrics
from rl.observability.progress import RunProgress, duration
from rl.observability.prometheus import DriverMetrics, serving
from rl.observability.run_directory import RunDirectory
from rl.observability.shortfall import Shortfalls, unscored_by_kind
from rl.observability.step_metrics import StepMetrics
from rl.observability.timeline import DRIVER, STEP, write_spans
from rl.observability.trackers import MetricsWriter, check_trackers
from rl.run.best import BestCheckpoint, state_of
from rl.run.checkpoints import disk_full, find_checkpoint, read_state, save_checkpoint
from rl.run.early_warnings import EarlyWarnings
from rl.run.guard import SkipGuard
from rl.run.profile import profiled
from rl.run.stop import StopRequest
from rl.types import Span

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PHASES = {"gen": "rollout", "update_actor": "update", "save_checkpoint": "checkpoint"}


class Run:
    """A run in progress; create it with `Run.open`."""

    def __init__(self, config: Config, directory: RunDirectory, live: DriverMetrics) -> None:
        self.config, self.directory = config, directory
        self.progress = RunProgress(config.megatron_training.train_iters, has_bar=not config.rl_config.in_process)
        self._writer = MetricsWriter(directory, config)
        self._live = live
        live.writer = self._writer
        self._guard = SkipGuard(directory, config.rl_config.max_skipped_steps)
        self._shortfalls = Shortfalls()
        self._warnings = EarlyWarnings(directory, config.megatron_training.early_warning)
        self._start = time.monotonic()
        self._completed = self._start_step = 0
        self._best = BestCheckpoint(config.megatron_training.best_metric)
        self._stop = StopRequest()
        self._is_stopped = False
        self._rows: DataPlace | None = None
        self._actor: Actor | None = None
        self._tokens = self._earlier_s = 0.0

    @classmethod
    @contextmanager
    def open(cls, config: Config, name: str, directory: RunDirectory | None = None) -> Iterator[Run]:
        """Create the run's directory and open its trackers, log and progress display.

        Args:
            config: A validated configuration.
            name: The configuration's name.
            directory: An empty one that was created before; its configuration is written again.

        Yields:
            The run. A block that succeeds writes `summary.json`; one that fails or is interrupted shows how to resume.
            A failure before the first metric frees the `run_name`: the directory gets `-failed-1` (2, 3, ...)
            appended.

        Raises:
            ConfigError: The directory cannot be created, a configured tracker is not installed or does not start, or
                the port for Prometheus is in use.
            StoppedError: A signal asked for the end; see `saving_on_termination`.
        """
        check_trackers(config)
        with ExitStack() as stack:
            live = stack.enter_context(serving(config))
            if directory is None:
                directory = RunDirectory.create(config, name)
            else:
                save_resolved(config, directory.config_file)
            setup_logging(directory.log_file)
            stack.enter_context(freeing_the_name(directory))
            run = cls(config, directory, live)
            stack.enter_context(run._writer)
            stack.enter_context(run.progress)
            run.progress.note(f"run directory: {directory.path}")
            if live.address:
                logger.info("metrics for Prometheus: %s", live.address)
            try:
                yield run
            except KeyboardInterrupt:
                run.progress.note(f"interrupted. {_how_to_resume(directory, config)}")
                raise
            except Exception as failure:  # even after a bug the last checkpoint is usable
                if directory.latest_checkpoint():
                    run.progress.note(_how_to_resume(directory, config))
                if isinstance(failure, OSError) and failure.errno in _FULL:
                    raise disk_full(directory) from failure
                raise
            if run._is_stopped:
                raise StoppedError(f"{run._stop.signal}: the run has ended. {_how_to_resume(directory, config)}")
            run._finish()

    def watching(self, rollouts: Rollouts | None) -> AbstractContextManager[None]:
        """Serve queue lengths and engines' metrics of these rollouts during a block, where `prometheus_port` is set."""
        return self._live.watching(rollouts)

    def saving_on_termination(self) -> AbstractContextManager[None]:
        """At SIGTERM or SIGUSR1 during a block, save after the current step and let `steps` end; then the run raises.

        A second SIGTERM interrupts the block.
        """
        return self._stop.listening()

    def resume(self, actor: Actor, rows: DataPlace) -> int:
        """Restore the checkpoint that `megatron_training.resume` names, if any.

        Args:
            actor: Its weights and optimizer are restored; from then on the run asks it what each rank did.
            rows: Its place in the data is restored; from then on the run asks it when the data ends.

        Returns:
            Completed steps, which is the number of the first step to run.

        Raises:
            CheckpointError: There is no complete checkpoint.
        """
        source = self.config.megatron_training.resume
        start_step = 0
        if source:
            checkpoint = find_checkpoint(Path(source))
            state = read_state(checkpoint)
            actor.load_checkpoint(checkpoint)
            try:
                rows.load_state_dict(state["data"])
            except KeyError as error:
                raise CheckpointError(
                    f"{checkpoint / RUN_STATE_FILE}: its place in the data has no {error}. Resume with the command "
                    "that wrote it (train or sft)."
                ) from error
            start_step = int(state["step"])
            self._best.recall(state.get("best"))
            self.directory.adopt_history(RunDirectory(checkpoint.parent.parent), start_step)
            history = self.directory.read_metrics()
            self._writer.write_history(history)
            self._tokens = sum(row.get("perf/total_num_tokens", 0.0) for row in history)
            self._earlier_s = sum(row.get("timing_s/step", 0.0) for row in history)
            self._shortfalls.recall(history)
            self._warnings.recall(history)
            self.progress.note(f"resumed after step {start_step} from {checkpoint}")
        self._actor = actor
        self.begin(rows, start_step)
        return start_step

    def begin(self, rows: DataPlace, start_step: int = 0) -> None:
        """Begin without an actor or, as `resume` does, after completed steps.

        Args:
            rows: From now on the run asks it when the data ends.
            start_step: Completed steps.
        """
        self._completed = self._start_step = start_step
        self._rows = rows
        self.progress.num_steps = self.num_steps(start_step)
        self.progress.begin(start_step)

    def num_steps(self, completed: int) -> int:
        """Steps of the whole run: `train_iters`, or fewer if `total_epochs` ends it earlier.

        With dynamic sampling the prompts per step vary, so the end of `total_epochs` is estimated from the prompts used
        so far until it is reached.

        Args:
            completed: Completed steps, including one whose prompts have just been used.
        """
        expected = self._rows.expected_steps(completed) if self._rows is not None else None
        train_iters = self.config.megatron_training.train_iters
        return train_iters if expected is None else min(train_iters, expected)

    def steps(self, start_step: int) -> Iterator[int]:
        """Numbers of the remaining steps, to the end of the run or to a signal that asks for an earlier one."""
        step = self._next_step(start_step)
        while step is not None and step < self.num_steps(step):
            if self._stop.signal is not None:
                self._save_what_is_new()
                self._is_stopped = True
                return
            yield step
            step = self._next_step(step + 1)
        self._summarize()  # the run is complete, even if the shutdown fails

    def place(self, step: int) -> RunPlace:
        """A step's place in the run, for its learning rate. Call it after the step's prompts are used."""
        return RunPlace(step, self.num_steps(step + 1), self.is_recorded(step))

    def is_recorded(self, step: int) -> bool:
        """Whether the tokens of the step with this number, from 0, are recorded."""
        training = self.config.megatron_training
        every = training.record_tokens_every
        return every > 0 and (step == 0 or (step + 1) % every == 0 or training.rollout_only)

    def warn(self, failures: Sequence[str]) -> None:
        """Log the first of what ranks could not write; the others have the same cause."""
        if failures:
            logger.warning("%s", failures[0])

    @contextmanager
    def step(self, step: int) -> Iterator[StepMetrics]:
        """Collect, show and write the metrics of one step.

        Args:
            step: The step's number, from 0. Metrics are written under the number of completed steps, `step + 1`.

        Yields:
            The metrics to fill. A step that fails writes nothing.

        Raises:
            TrainingError: Too many steps in a row had NaN or Inf in their update, or no reward, or an early warning
                ends the run; this step is written.
        """
        metrics = StepMetrics(max_response_length=longest_response(self.config), on_phase=self._on_phase)
        start = time.monotonic()
        self._best.observe(step + 1, metrics)
        with self._profiled(step + 1):
            yield metrics
            metrics["timing_s/step"] = time.monotonic() - start
        num_sampled = sum(t.num_sampled for g in metrics.groups for t in g.trajectories)
        learning_s = (
            metrics["timing_s/step"]
            - metrics.get("timing_s/evaluation", 0)
            - metrics.get("timing_s/save_checkpoint", 0)
        )
        gen_s = metrics.get("timing_s/gen", 0.0)
        tokens = metrics.get("perf/total_num_tokens", 0.0)
        num_devices = self.config.rl_config.actor_resource.num_devices
        metrics.update(speed_metrics(tokens, num_sampled, learning_s, gen_s, num_devices))
        self._tokens += tokens
        self._completed = step + 1
        raised, reason_to_end = self._warnings.observe(step + 1, metrics, metrics.groups)
        metrics.update(raised)
        self._writer.write(step + 1, metrics)
        self._live.record(step + 1, metrics)
        self._write_timeline(step + 1, metrics, start)
        place = self.place(step)
        if metrics.rollouts is not None:
            recording = Recording(self.directory.tokens_file(step + 1), place) if place.is_recorded else None
            metrics.rollouts.write_trajectories(self.directory.step_file(step + 1), metrics.groups, recording)
            self._writer.write_trajectories(step + 1, metrics.groups, metrics.rollouts, kind="train")
        self._shortfalls.observe(step + 1, metrics, metrics.groups)
        self.progress.num_steps = self.num_steps(step + 1)
        self.progress.step(step + 1, metrics)
        self._guard.check(step + 1, metrics.offending, metrics.groups, metrics.rollouts)
        if reason_to_end is not None:
            raise TrainingError(reason_to_end)

    def log_evaluation(self, step: int, groups: Sequence[GroupHeader], rollouts: Rollouts) -> list[Figures]:
        """Write an evaluation, and show a line for each set.

        Args:
            step: Completed steps.
            groups: Scored groups of the evaluation prompts; if empty, nothing happens.
            rollouts: The source of the groups.

        Returns:
            The figures.
        """
        figures = summarize(groups)
        if not figures:
            return []
        metrics = evaluation_metrics(groups, figures)
        self._writer.write(step, metrics)
        self._live.record(step, metrics)
        self._warnings.record_evaluation(step, metrics)
        self._best.observe(step, metrics)
        rollouts.write_trajectories(self.directory.evaluation_file(step), groups)
        self._writer.write_trajectories(step, groups, rollouts, kind="eval")
        rows = set_rows(figures)
        for row in rows:
            name = f", {row.name}" if len(rows) > 1 else ""
            self.progress.note(f"evaluation after step {step}{name}: {describe(row)}")
        for kind, members in unscored_by_kind([t for group in groups for t in group.trajectories]).items():
            cause = f"{members[0].id}: {members[0].failure}"
            logger.warning(
                "evaluation after step %d: %d trajectories %s, counted as wrong. The first, %s",
                step, len(members), kind, cause,
            )  # fmt: skip
        return figures

    def is_evaluation_due(self, step: int) -> bool:
        """Whether an evaluation follows the step with this number, from 0."""
        training = self.config.megatron_training
        if self._is_last(step):
            return training.eval_after_train
        return training.eval_interval > 0 and (step + 1) % training.eval_interval == 0

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint follows the step with this number, from 0; always true for the last step."""
        return self._is_last(step) or (step + 1) % self.config.megatron_training.save_interval == 0

    def save(self, step: int, actor: Checkpointed, rows: DataPlace) -> Path:
        """Write a checkpoint, rename it once it is complete, and remove the oldest beyond `max_checkpoints`.

        The best by `best_metric` stays.

        Args:
            step: Completed steps.
            actor: Writes weights and optimizer.
            rows: Provides the place in the data.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: It could not be written. An incomplete actor part is removed; earlier checkpoints stay.
        """
        best = self._best.after(step, self.directory.checkpoint(step))
        number = self.config.megatron_training.max_checkpoints
        written = save_checkpoint(self.directory, step, actor, rows, max_checkpoints=number, best=best)
        self._best.best = best
        return written

    def _save_what_is_new(self) -> None:
        """Save the steps of this process, unless the last of them has a checkpoint."""
        if self._completed > self._start_step and not self.directory.checkpoint(self._completed).is_dir():
            assert self._actor is not None and self._rows is not None, "`resume` has set both"
            self.progress.phase("checkpoint")
            self.save(self._completed, self._actor, self._rows)

    def _next_step(self, completed: int) -> int | None:
        return completed if self._rows is None else self._rows.next_step(completed)

    def _is_last(self, step: int) -> bool:
        following = self._next_step(step + 1)
        return following is None or following >= self.num_steps(following)

    def _profiled(self, step: int) -> AbstractContextManager[None]:
        if step != self.config.megatron_training.profile_step or self._actor is None:
            return nullcontext()
        return profiled(self._actor, self.directory.profile, step)

    def _write_timeline(self, step: int, metrics: StepMetrics, start: float) -> None:
        spans = [Span(DRIVER, STEP, wall_time(start), wall_time(start + metrics["timing_s/step"])), *metrics.spans]
        for workers in (self._actor, metrics.rollouts):
            spans += workers.take_spans() if workers is not None else ()
        start_s, end_s = spans[0].start, spans[0].end
        within = [span for span in spans if span.end > start_s and span.start < end_s]
        write_spans(self.directory.timeline_file(step), within)

    def _on_phase(self, name: str) -> None:
        self.progress.phase(_PHASES.get(name, name.replace("_", " ")))

    def _finish(self) -> None:
        self._summarize()
        self.progress.note(f"finished in {duration(time.monotonic() - self._start)}: {self.directory.path}")
        if self._best.best is not None:
            self.progress.note(self._best.best.as_text())
        for line in [*self._shortfalls.summary(), *self._warnings.summary()]:
            self.progress.note(line)

    def _summarize(self) -> None:
        wall_s = time.monotonic() - self._start
        checkpoint = self.directory.latest_checkpoint()
        self.directory.finish(
            {
                "steps": self._completed,
                "tokens": self._tokens,
                "wall_s": round(self._earlier_s + wall_s, 3),
                "checkpoint": str(checkpoint) if checkpoint else None,
                "best": state_of(self._best.best),
                "shortfalls": self._shortfalls.summary(),
                "warnings": self._warnings.summary(),
            }
        )


@contextmanager
def freeing_the_name(directory: RunDirectory) -> Iterator[None]:
    """Rename the directory of a run that fails before its first metric, so that the same command works again."""
    has_ended_by_itself = False
    try:
        yield
        has_ended_by_itself = True
    finally:
        if not has_ended_by_itself and directory.path.exists() and directory.is_empty:
            aside = directory.set_aside()
            setup_logging(aside.log_file)  # later log lines go to the moved file
            logger.error("no step was completed; the logs are in %s", aside.path)


def _how_to_resume(directory: RunDirectory, config: Config) -> str:
    checkpoint = directory.latest_checkpoint()
    if config.megatron_training.resume_mode is ResumeMode.AUTO:
        place = (
            f"after step {_step_of(checkpoint)}, saved in {directory.path}" if checkpoint else "as far as it was saved"
        )
        return f"To go on {place}, give the same command again."
    if directory.is_empty:
        return "No step was completed: start the run again."
    if checkpoint is None and directory.has_groups:
        return (
            "There is no checkpoint yet, but the groups of clients are kept: to train on them first, give the same "
            f"command with megatron_training.resume={directory.path}, and another run_name if one is set."
        )
    if checkpoint is None and config.megatron_training.resume:
        return "Nothing was saved since the resume: give the same command again, with another run_name if one is set."
    if checkpoint is None:
        return "There is no checkpoint yet: start the run again, under another run_name if one is set."
    return (
        f"To resume after step {_step_of(checkpoint)}, give the same command with "
        f"megatron_training.resume={directory.path}, and another run_name if one is set."
    )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
