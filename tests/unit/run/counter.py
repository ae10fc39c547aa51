"""A run whose actor and data are one number, with real files on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl.config.schema import Config
from rl.observability.clock import wall_time
from rl.observability.step_metrics import StepMetrics
from rl.run.run import Run
from rl.training.trainer_state import TrainerState, write_trainer_state
from rl.types import Span
from tests.samples import AtHand
from tests.unit.observability.examples import make_group


class Counter:
    """Stands for an actor and a data cursor: one number that a checkpoint keeps."""

    def __init__(self) -> None:
        self.value = 0

    def save_checkpoint(self, directory: Path) -> None:
        (directory / "value").write_text(str(self.value))
        (directory / "optimizer" / "exp_avg").mkdir(parents=True)
        (directory / "optimizer" / "exp_avg" / "moments").write_bytes(bytes(range(256)))
        write_trainer_state(directory, TrainerState(num_steps=1, num_updates=1))

    def load_checkpoint(self, directory: Path) -> None:
        self.value = int((directory / "value").read_text())

    def expected_steps(self, completed: int) -> int | None:
        return None

    def next_step(self, completed: int) -> int | None:
        return completed

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]

    def take_spans(self) -> list[Span]:
        now = wall_time()
        return [
            Span("actor 0", "before the step", now - 100.0, now - 50.0),
            Span("actor 0", "update_on", now - 0.5, now),
        ]


def counted_config(folder: Path) -> Config:
    """Four steps in `folder`/first, with a checkpoint after the second and the last."""
    made = Config()
    made.megatron_training.output_dir = str(folder)
    made.megatron_training.run_name = "first"
    made.megatron_training.train_iters = 4
    made.megatron_training.save_interval = 2
    made.megatron_training.trackers = []
    return made


def run_steps(
    config: Config,
    *,
    until: int | None = None,
    during: Callable[[int, StepMetrics], object] = lambda step, metrics: None,
) -> Run:
    """Train to the end, or to an interrupt in the step with the number `until`.

    Args:
        config: From `counted_config`.
        until: See above.
        during: Called in each step with its number and its metrics.
    """
    actor, rows = Counter(), Counter()
    with Run.open(config, "tiny") as run, run.saving_on_termination():
        for step in run.steps(run.resume(actor, rows)):
            if step == until:
                raise KeyboardInterrupt
            with run.step(step) as metrics:
                actor.value += 10
                rows.value += 1
                with metrics.time("gen"):
                    groups = [make_group()]
                metrics.record(groups, AtHand())
                metrics["seen"] = float(actor.value + rows.value)
                during(step, metrics)
                if run.is_save_due(step):
                    run.save(step + 1, actor, rows)
    return run
