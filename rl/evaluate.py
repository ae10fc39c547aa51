"""Evaluation with the agent loop of training, or through an OpenAI-compatible server; greedy by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.batches import GroupHeader
from rl.cluster.launch import launch
from rl.config.schema import Config
from rl.interfaces import Rollouts
from rl.observability.evaluation_output import Output
from rl.preflight import preflight_endpoint, preflight_evaluation
from rl.remote.client import Endpoint
from rl.remote.launch import connect
from rl.run.run import Run
from rl.types import Prompt, Sampling


def main(config: Config, name: str, model: Path | Endpoint, output: Output) -> None:
    """Evaluate a model on `megatron_training.eval_data_path` and write the metrics to a run directory.

    Args:
        config: The composed configuration.
        name: Name of the configuration, for the run directory.
        model: Hugging Face folder, checkpoint, or model behind a server.
        output: Where figures go besides, and the evaluation to compare with.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    prompts = preflight_endpoint(config, model) if isinstance(model, Endpoint) else preflight_evaluation(config)
    output.check(prompts)
    with (
        Run.open(config, name) as run,
        _rollouts(config, run, model, prompts) as rollouts,
        run.watching(rollouts),
    ):
        figures = run.log_evaluation(0, evaluate(config, rollouts, prompts), rollouts)
    output.show(figures, run.directory, str(model))


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


@contextmanager
def _rollouts(config: Config, run: Run, model: Path | Endpoint, prompts: list[Prompt]) -> Iterator[Rollouts]:
    """Engines with the model, or the connection to its server."""
    if isinstance(model, Endpoint):
        with connect(config, model, prompts, on_group=run.progress.groups) as rollouts:
            yield rollouts
        return
    with launch(
        config,
        log_directory=run.directory.logs,
        prompts=prompts,
        loss=None,
        model_folder=model,
        on_group=run.progress.groups,
    ) as cluster:
        assert cluster.rollouts is not None, "launch starts engines for an evaluation"
        yield cluster.rollouts
