"""Token weights that turn per-token losses into one loss, and sums and means over the sequences of a micro-batch.

The weights already contain the denominator of the whole mini-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.config.estimates import longest_response
from rl.config.schema import Config, LossAggregation


def token_loss_weights(
    num_tokens: Tensor, trajectory_ids: Tensor, mode: LossAggregation, *, scale: float = 1.0
) -> Tensor:
    """Weigh tokens so that the loss is sum(weights * token_loss), over any micro-batches and ranks.

    With M loss tokens in the mini-batch, K trajectories with at least one, and m_k in trajectory k:

    * `token-mean`: w_t = 1 / M. Every token counts the same, so a long trajectory counts more.
    * `seq-mean-token-mean`: w_t = 1 / (K m_k). Every trajectory counts the same, even if it spans several samples.
    * `seq-mean-token-sum-norm`: w_t = 1 / (K scale). Like `token-mean`, but independent of the lengths in the batch.

    A masked-out trajectory has no loss tokens, so no denominator counts it. Over the loss tokens, the weights of the
    first two modes sum to 1, or to 0 without any.

    Example: 1 loss token in trajectory 0, 3 in trajectory 1. The modes give 1/4 each; 1/2 and 1/6, 1/6, 1/6; 1/20 each
    with scale 10.

    Args:
        num_tokens: [R] float32, number of loss tokens in each row of the mini-batch. A token mask is the special case
            with one token per row.
        trajectory_ids: [R] int64, 0 or more, equal within a trajectory.
        mode: As returned by `loss_aggregation`.
        scale: Constant of `seq-mean-token-sum-norm`, in tokens, above 0.

    Returns:
        [R] float32, weight of each loss token in a row; 0 if the row has none.

    Source: token-mean, DAPO, arXiv:2503.14476, section 3.3; seq-mean-token-mean, GRPO, arXiv:2402.03300;
    seq-mean-token-sum-norm, Dr. GRPO, arXiv:2503.20783; the names are verl's.
    """
    if not bool(num_tokens.any()):
        return torch.zeros_like(num_tokens)
    counts = num_tokens.double()
    has_loss = (counts > 0).double()
    if mode is LossAggregation.TOKEN_MEAN:
        return (has_loss / counts.sum()).float()
    tokens = torch.zeros(int(trajectory_ids.max()) + 1, dtype=torch.float64).scatter_add_(0, trajectory_ids, counts)
    num_trajectories = int((tokens > 0).sum())
    if mode is LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM:
        return (has_loss / (num_trajectories * scale)).float()
    assert mode is LossAggregation.SEQ_MEAN_TOKEN_MEAN, f"an aggregation was added without a formula here: {mode}"
    return (has_loss / (tokens[trajectory_ids].clamp(min=1.0) * num_trajectories)).float()


def loss_aggregation(config: Config) -> tuple[LossAggregation, float]:
    """Read the aggregation mode and its constant from the configuration.

    Returns:
        `loss_agg_mode`, by default the mode for `token_level_loss`; and `loss_scale_factor`, by default the longest
        possible response in tokens.
    """
    rl = config.rl_config
    by_default = LossAggregation.TOKEN_MEAN if rl.token_level_loss else LossAggregation.SEQ_MEAN_TOKEN_MEAN
    return rl.loss_agg_mode or by_default, rl.loss_scale_factor or float(longest_response(config))


def sequence_ids(sample_ids: Tensor) -> Tensor:
    """Number the sampled sequences of a micro-batch.

    A sampled sequence is a trajectory, or one part of it where the chat template or the agent rewrote history. All its
    loss tokens are in one micro-batch, though some may be in a prefix that other sequences share.

    Example: samples -1 7 7 -1 2 give -1 1 1 -1 0.

    Args:
        sample_ids: [T] int64, the sample of each loss token, -1 elsewhere.

    Returns:
        [T] int64, from 0, below T, or -1 where `sample_ids` is.
    """
    found, ids = sample_ids.unique(return_inverse=True)  # sorted
    return ids - (found[0] < 0).long()


def sequence_sum(values: Tensor, ids: Tensor) -> Tensor:
    """Give each loss token the sum of `values` over the loss tokens of its sequence; differentiable.

    Args:
        values: [T] float32.
        ids: [T] int64, from `sequence_ids`.

    Returns:
        [T] float32, 0 where the id is -1.
    """
    totals = values.new_zeros(len(ids) + 1).index_add(0, ids + 1, torch.where(ids >= 0, values, 0.0))
    return totals[ids + 1]


def sequence_mean(values: Tensor, ids: Tensor) -> Tensor:
    """Give each loss token the mean of `values` over the loss tokens of its sequence; differentiable.

    Args:
        values: [T] float32.
        ids: [T] int64, from `sequence_ids`.

    Returns:
        [T] float32, 0 where the id is -1.
    """
    return sequence_sum(values, ids) / sequence_sum(torch.ones_like(values), ids).clamp(min=1.0)
