"""The page: sample, learn, publish."""

from __future__ import annotations

from rl.batch.groups import estimate_advantages, plan_batch
from rl.batch.layout import packing_layout
from rl.cluster.launch import launch
from rl.config.schema import Config
from rl.evaluate import evaluate
from rl.interfaces import Actor, Rollouts
from rl.preflight import preflight, preflight_replay
from rl.run.run import Run
from rl.types import Prompt


def main(config: Config, name: str) -> None:
    """Train from a configuration, in a run directory of its own; with `replay`, on recorded groups.

    Args:
        config: The composed configuration.
        name: Name of the configuration, for the run directory.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    recorded = preflight_replay(config) if config.megatron_training.replay else None
    prompts, evaluation = preflight(config) if recorded is None else (None, [])
    with (
        Run.open(config, name) as run,
        launch(
            config,
            log_directory=run.directory.logs,
            prompts=prompts,
            replay=recorded,
            on_group=run.progress.groups,
        ) as cluster,
        run.watching(cluster.rollouts),
        run.saving_on_termination(),
    ):
        assert cluster.actor is not None and cluster.rollouts is not None, "training asked for both"
        train(config, run, cluster.actor, cluster.rollouts, evaluation)


def train(config: Config, run: Run, actor: Actor, rollouts: Rollouts, evaluation: list[Prompt]) -> None:
    """Run the remaining steps; a resumed run continues from its checkpoint."""
    training = config.megatron_training
    layout = packing_layout(config, num_data_parallel=actor.num_data_parallel)
    start_step = run.resume(actor, rollouts)
    publish_weights(actor, rollouts, version=start_step)
    if training.eval_before_train:
        run.log_evaluation(start_step, evaluate(config, rollouts, evaluation), rollouts)

    for step in run.steps(start_step):
        with run.step(step) as metrics:
            with metrics.time("gen"):
                is_recorded = run.is_recorded(step)
                groups = rollouts.take(training.global_batch_size, metrics, step=step, is_recorded=is_recorded)
            with metrics.time("adv"):
                batch = plan_batch(groups, config, layout, metrics)
            if batch.rows:
                with metrics.time("ref"):
                    metrics.update(actor.fill_ref_logprobs(batch))
                with metrics.time("adv"):
                    estimate_advantages(batch, groups, config, layout, metrics)
            if batch.rows:  # else nothing to learn from: no optimizer step, no publish
                with metrics.time("old_log_prob"):
                    actor.fill_old_logprobs(batch)
                with metrics.time("update_actor"):
                    metrics.record_update(actor.update(batch, run.place(step)))
                if is_recorded:
                    with metrics.time("record_tokens"):
                        run.warn(actor.record_tokens(run.directory.tokens_file(step + 1)))
                with metrics.time("update_weights"):
                    publish_weights(actor, rollouts, version=step + 1)
            metrics.record(groups, rollouts)
            if run.is_evaluation_due(step):
                with metrics.time("evaluation"):
                    run.log_evaluation(step + 1, evaluate(config, rollouts, evaluation), rollouts)
            if run.is_save_due(step):
                with metrics.time("save_checkpoint"):
                    run.save(step + 1, actor, rollouts)


def publish_weights(actor: Actor, rollouts: Rollouts, version: int) -> None:
    """Give every engine the actor's weights; what they sample from now on carries `version`."""
    if rollouts.has_engines:
        rollouts.update_weights(actor.publish(version))
