"""Evaluation: held-out prompts through the same agent loop, greedily unless told otherwise."""

from __future__ import annotations

from pathlib import Path

from rl.cluster.launch import launch
from rl.config.schema import Config
from rl.data.prompts import drop_long_prompts, load_prompts
from rl.interfaces import Rollouts
from rl.preflight import preflight_evaluation
from rl.rollout.dialog import load_dialog
from rl.run.run import Run
from rl.types import GroupHeader, Prompt, Sampling


def main(config: Config, name: str, model: Path) -> None:
    """Evaluate a model folder on `megatron_training.test_data_path` and write the figures to a run directory.

    Args:
        config: As composed from YAML and the command line.
        name: The configuration's name, for the run directory.
        model: Hugging Face folder or checkpoint to evaluate.

    Raises:
        TurnwiseError: Anything a user can mend.
    """
    preflight_evaluation(config)
    held_out = load_held_out(config)
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
    ):
        assert cluster.rollouts is not None, "the evaluation asked for engines"
        run.log_evaluation(0, evaluate(config, cluster.rollouts, held_out), cluster.rollouts)


def load_held_out(config: Config) -> list[Prompt]:
    """Read the held-out prompts; those longer than `max_prompt_length` are dropped and counted, as in training.

    Returns:
        Prompts in the order of the file; none where `test_data_path` is not set.

    Raises:
        DataError: The file is malformed, or no prompt is short enough.
    """
    path = config.megatron_training.test_data_path
    if not path:
        return []
    return drop_long_prompts(
        load_prompts(Path(path)), load_dialog(config).renderer, config.rl_config.max_prompt_length
    )[0]


def evaluate(config: Config, rollouts: Rollouts, prompts: list[Prompt]) -> list[GroupHeader]:
    """Run every held-out prompt with `generate_config.eval_sampling_config`.

    Returns:
        A scored group for each prompt, in their order; empty without prompts.
    """
    sampling = config.generate_config.eval_sampling_config
    settings = Sampling(
        temperature=sampling.temperature,
        max_tokens=config.generate_config.sampling_config.max_tokens,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=config.megatron_training.seed,
    )
    return rollouts.evaluate(prompts, settings, sampling.num_samples)
