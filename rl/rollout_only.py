"""The sampling half of training by itself: sample, score and record, without an actor. `replay` trains on it later."""

from __future__ import annotations

from rl.batch.groups import plan_batch
from rl.batch.layout import packing_layout
from rl.cluster.launch import launch
from rl.config.schema import Config
from rl.interfaces import Rollouts
from rl.preflight import preflight
from rl.run.run import Run


def main(config: Config, name: str) -> None:
    """Sample the steps of a configuration with the weights of `actor_config.load`, in a run directory of its own.

    Args:
        config: The composed configuration, with `megatron_training.rollout_only`.
        name: Name of the configuration, for the run directory.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    prompts, _ = preflight(config)
    with (
        Run.open(config, name) as run,
        launch(
            config,
            log_directory=run.directory.logs,
            prompts=prompts,
            loss=None,
            on_group=run.progress.groups,
        ) as cluster,
        run.watching(cluster.rollouts),
    ):
        assert cluster.rollouts is not None, "launch starts engines for prompts"
        sample(config, run, cluster.rollouts)


def sample(config: Config, run: Run, rollouts: Rollouts) -> None:
    """Sample every step; say what training would make of it, as far as that needs no model."""
    layout = packing_layout(config, num_data_parallel=1)
    run.begin(rollouts)
    for step in run.steps(0):
        with run.step(step) as metrics:
            with metrics.time("gen"):
                groups = rollouts.take(
                    config.megatron_training.global_batch_size, metrics, step=step, is_recorded=run.is_recorded(step)
                )
            with metrics.time("adv"):
                plan_batch(groups, config, layout, metrics)
            metrics.record(groups, rollouts)
