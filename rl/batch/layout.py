"""The sizes that a step's rows are cut by: ranks, mini-batches and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rl.algorithms.aggregation import loss_aggregation
from rl.batch.balance import CostModel
from rl.config.device import runs_on_cuda
from rl.config.model_facts import find_model_facts
from rl.config.schema import Config, LossAggregation


@dataclass(slots=True, frozen=True)
class PackingLayout:
    """How a step's samples are cut into mini-batches, ranks and micro-batches."""

    num_data_parallel: int
    """Ranks that get different micro-batches, at least 1."""
    max_tokens: int
    """Tokens of one micro-batch; a longer sample stands alone."""
    mini_batch_prompts: int
    """Groups of one optimizer step at most, at least 1."""
    epochs: int = 1
    """Passes over the mini-batches, at least 1."""
    loss_aggregation: LossAggregation = LossAggregation.TOKEN_MEAN
    """See `rl.algorithms.aggregation.token_loss_weights`."""
    loss_scale: float = 1.0
    """Its constant, where it has one."""
    pad_to_multiple: int = 1
    """A micro-batch's length is a multiple of this: the tensor-parallel size, with sequence parallelism."""
    share_prefix: bool = False
    """Hold what the samples of a group, and the groups, have in common once in each micro-batch."""
    num_micro_batches_multiple: int = 1
    """A rank's number of micro-batches is a multiple of this: the pipeline size, with virtual pipeline stages."""
    cost: CostModel = field(default_factory=CostModel)
    """What a sequence costs, for the balance of ranks."""


def packing_layout(config: Config, *, num_data_parallel: int) -> PackingLayout:
    """Read the sizes off the configuration.

    Args:
        config: The run's configuration.
        num_data_parallel: Ranks that train on different samples.

    Returns:
        The layout of every step of the run.
    """
    rl, training, actor = config.rl_config, config.megatron_training, config.actor_config
    facts, _ = find_model_facts(config)
    aggregation, scale = loss_aggregation(config)
    return PackingLayout(
        num_data_parallel=num_data_parallel,
        max_tokens=rl.max_packing_token_size,
        mini_batch_prompts=rl.mini_batch_size or training.global_batch_size,
        epochs=rl.epochs,
        loss_aggregation=aggregation,
        loss_scale=scale,
        pad_to_multiple=actor.tensor_model_parallel_size if training.sequence_parallel else 1,
        share_prefix=not runs_on_cuda(config) if rl.share_prompt_prefix is None else rl.share_prompt_prefix,
        num_micro_batches_multiple=(
            1 if actor.num_layers_per_virtual_pipeline_stage is None else actor.pipeline_model_parallel_size
        ),
        cost=CostModel.of(facts),
    )


def demonstration_layout(config: Config, *, num_data_parallel: int) -> PackingLayout:
    """As `packing_layout`, for the cold start: one optimizer step a step, on the mean over its tokens.

    How rewards are learned from (`mini_batch_size`, `epochs`, `loss_agg_mode`) says nothing of demonstrations.
    """
    return replace(
        packing_layout(config, num_data_parallel=num_data_parallel),
        mini_batch_prompts=config.megatron_training.global_batch_size,
        epochs=1,
        loss_aggregation=LossAggregation.TOKEN_MEAN,
    )
