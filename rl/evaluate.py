"""Evaluation on held-out prompts with the agent loop of training, greedy by default."""

from __future__ import annotations

from pathlib import Path

from rl.batches import GroupHeader
from rl.cluster.launch import launch
from rl.config.schema import Config
from rl.interfaces import Rollouts
from rl.preflight import preflight_evaluation
from rl.run.run import Run
from rl.types import Prompt, Sampling


def main(config: Config, name: str, model: Path) -> None:
    """Evaluate a model on `megatron_training.test_data_path` and write the metrics to a run directory.

    Args:
        config: The composed configuration.
        name: Name of the configuration, for the run directory.
        model: Hugging Face folder or checkpoint.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    held_out = preflight_evaluation(config)
    with (
        Run.open(config, name) as run,
        launch(
            config,
            log_directory=run.directory.logs,
            prompts=held_out,
            loss=None,
            model_folder=model,
            on_group=run.progress.groups,
        ) as cluster,
        run.watching(cluster.rollouts),
    ):
        assert cluster.rollouts is not None, "launch starts engines for an evaluation"
        run.log_evaluation(0, evaluate(config, cluster.rollouts, held_out), cluster.rollouts)


def evaluate(config: Config, rollouts: Rollouts, prompts: list[Prompt]) -> list[GroupHeader]:
    """Roll out prompts with `generate_config.eval_sampling_config`; return one scored group per prompt, in order."""
    sampling = config.generate_config.eval_sampling_config
    settings = Sampling(
        temperature=sampling.temperature,
        max_tokens=config.generate_config.sampling_config.max_tokens,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=config.megatron_training.seed,
    )
    return rollouts.evaluate(prompts, settings, sampling.num_samples)
