"""Sizes for splitting a step's rows into mini-batches, ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rl.algorithms.aggregation import loss_aggregation
from rl.batch.balance import CostModel
from rl.config.device import runs_on_cuda
from rl.config.model_facts import find_model_facts
from rl.config.schema import Config, LossAggregation


@dataclass(slots=True, frozen=True)
class PackingLayout:
    """How a step's samples are split into mini-batches, ranks and micro-batches."""

    num_data_parallel: int
    """Ranks that get different micro-batches, at least 1."""
    max_tokens: int
    """Maximum tokens of a micro-batch; a longer sample gets its own."""
    mini_batch_prompts: int
    """Maximum groups of one optimizer step, at least 1."""
    epochs: int = 1
    """Passes over the mini-batches, at least 1."""
    loss_aggregation: LossAggregation = LossAggregation.TOKEN_MEAN
    """See `rl.algorithms.aggregation.token_loss_weights`."""
    loss_scale: float = 1.0
    """Constant of the aggregation, if any."""
    pad_to_multiple: int = 1
    """A micro-batch's length is a multiple of this: the tensor-parallel size, with sequence parallelism."""
    share_prefix: bool = False
    """Store the common prefix of a group's samples, and of all groups, once per micro-batch."""
    num_micro_batches_multiple: int = 1
    """A rank's number of micro-batches is a multiple of this: the pipeline size, with virtual pipeline stages."""
    cost: CostModel = field(default_factory=CostModel)
    """Cost of a sequence, for balancing ranks."""


def packing_layout(config: Config, *, num_data_parallel: int) -> PackingLayout:
    """Derive the sizes from the configuration.

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
    """Like `packing_layout`, for the cold start: one optimizer step per step, on the mean over its tokens.

    Settings of learning from rewards (`mini_batch_size`, `epochs`, `loss_agg_mode`) do not apply.
    """
    return replace(
        packing_layout(config, num_data_parallel=num_data_parallel),
        mini_batch_prompts=config.megatron_training.global_batch_size,
        epochs=1,
        loss_aggregation=LossAggregation.TOKEN_MEAN,
    )
