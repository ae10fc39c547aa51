"""Parallel layouts and the work of each rank: updates, log-probs, export, save, load, each loss, a correction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rl.algorithms.losses import LOSSES
from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples, plan_samples
from rl.batch.plan import share_of
from rl.batches import MicroBatch, MiniBatch, RunPlace
from rl.config.correction import RolloutCorrection
from rl.config.schema import Config, LossAggregation
from rl.training.actor import Actor
from tests.trees import tree_samples
from tests.update_case import UpdateTrace, trace_updates, update_config, update_samples, with_logprobs


@dataclass(frozen=True)
class Layout:
    """Ranks [first_rank, first_rank + world_size) of the test's four processes form one actor."""

    name: str
    model: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    vpp: int = 1
    first_rank: int = 0
    max_tokens: int = 48
    sequence_parallel: bool = False
    recompute: str = "none"
    is_distributed: bool = True
    bf16: bool = False

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def config(self, folder: Path) -> Config:
        config = update_config(
            folder / self.model,
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            num_layers_per_virtual_pipeline_stage=_NUM_LAYERS // (self.pp * self.vpp) if self.vpp > 1 else None,
            recompute_granularity=self.recompute,
        )
        config.rl_config.max_packing_token_size = self.max_tokens
        config.megatron_training.sequence_parallel = self.sequence_parallel
        config.megatron_training.use_distributed_optimizer = self.is_distributed
        config.megatron_training.bf16 = self.bf16
        return config


TIED, UNTIED = "qwen3-tied", "qwen2-untied"
"""qwen3 has norms on query and key, and 509 words, not divisible by two. qwen2 has biases."""
_NUM_LAYERS = 4

PHASES: tuple[tuple[Layout, ...], ...] = (
    (Layout("tp2", TIED, tp=2), Layout("pp2", TIED, pp=2, first_rank=2)),
    (Layout("dp2", TIED, dp=2), Layout("tp2-sequence", TIED, tp=2, sequence_parallel=True, first_rank=2)),
    (
        Layout("pp2-vpp2", TIED, pp=2, vpp=2, max_tokens=20),
        Layout("pp2-vpp2-untied", UNTIED, pp=2, vpp=2, recompute="full", first_rank=2),
    ),
    (Layout("tp2-pp2", TIED, tp=2, pp=2),),
    (Layout("tp2-pp2-untied", UNTIED, tp=2, pp=2, sequence_parallel=True, recompute="full"),),
    (Layout("pp2-dp2", UNTIED, pp=2, dp=2, max_tokens=1000),),
    (Layout("pp2-vpp2-dp2", TIED, pp=2, vpp=2, dp=2),),
    (Layout("tp2-dp2", UNTIED, tp=2, dp=2, is_distributed=False),),
)
"""Layouts of one phase run side by side."""

LAYOUTS = {layout.name: layout for phase in PHASES for layout in phase}

IN_BFLOAT16 = (
    Layout("tp2-dp2-bfloat16", UNTIED, tp=2, dp=2, sequence_parallel=True, bf16=True),
    Layout("pp2-dp2-bfloat16", TIED, pp=2, dp=2, recompute="full", bf16=True),
)
"""As on GPUs: float32 main parameters, distributed over the data-parallel ranks. These only train and offload."""

CLIP_RANGES = {"gspo": (0.01, 0.02), "gmpo": (0.1, 0.15), "cispo": (0.9, 0.1), "reinforce": (0.0, 0.0)}
"""Losses not used in the three updates; the first two have one ratio per sequence."""

CORRECTION = RolloutCorrection(rollout_is_threshold=1.3, rollout_rs="seq_sum_k1", rollout_rs_threshold=2.0)


@dataclass
class Outcome:
    """Results of one rank."""

    updates: UpdateTrace
    """Three updates, this rank's stage."""
    logprobs: dict[tuple[int, ...], Tensor]
    """After the updates, by the sampled token ids of the sequence; this rank's share."""
    resumed: dict[str, float]
    """Metrics of the fourth update, after loading the checkpoint of the single-process run."""
    is_same_offloaded: bool
    """Whether that update is bit-identical if the actor is offloaded and restored before it."""
    losses: dict[str, dict[str, float]]
    """Metrics of one more update with each loss of `CLIP_RANGES`, one after the other."""
    corrected: dict[str, float]
    """Metrics of one more update, with importance weights, rejected sequences and current log-probs as old ones."""
    branched: list[dict[str, float]]
    """Metrics of two more updates, on rollouts that branch: with the tokens of a tree shared, but in one process row by
    row."""
    loss_weights: dict[str, Tensor]
    """Parameters after all updates, this rank's stage."""


def run_layouts(rank: int, folder: Path) -> None:
    """Entry point of each of the four processes."""
    torch.set_num_threads(1)
    for phase in PHASES:
        for layout in phase:
            place = rank - layout.first_rank
            if 0 <= place < layout.world_size:
                meeting = folder / f"{layout.name}.rendezvous"
                outcome = run_layout(layout, folder, rank=place, init_method=f"file://{meeting}")
                torch.save(outcome, folder / f"{layout.name}.{place}.pt")
    for layout in IN_BFLOAT16:
        meeting = folder / f"{layout.name}.rendezvous"
        found = run_in_bfloat16(layout, folder, rank=rank, init_method=f"file://{meeting}")
        torch.save(found, folder / f"{layout.name}.{rank}.pt")


def run_layout(layout: Layout, folder: Path, *, rank: int, init_method: str | None) -> Outcome:
    """Train three steps, save; load the checkpoint of one process, train on: a fourth, each loss, a correction."""
    config = layout.config(folder)
    with Actor(config, rank=rank, world_size=layout.world_size, init_method=init_method, num_threads=1) as actor:
        micros = mini_batch(config, layout.dp).micro_batches[actor.parallel.dp_rank]
        updates = trace_updates(actor, micros)
        logprobs = by_sequence(micros, actor.compute_logprobs(micros))
        actor.save_checkpoint(folder / f"{layout.name}.checkpoint")
        alone = folder / f"{layout.model}.checkpoint"
        source = alone if alone.exists() else folder / f"{layout.name}.checkpoint"
        actor.load_checkpoint(source)
        resumed = actor.update(micros)
        expected = {name: tensor.clone() for name, tensor in actor.export_hf_weights()}
        actor.load_checkpoint(source)
        is_same = _is_same_offloaded(actor, micros, expected)
        losses = {}
        config.rl_config.loss_agg_mode = LossAggregation.SEQ_MEAN_TOKEN_MEAN
        for name, (low, high) in CLIP_RANGES.items():
            actor.objective = replace(actor.objective, loss=LOSSES[name], clip_low=low, clip_high=high)
            micros = mini_batch(config, layout.dp).micro_batches[actor.parallel.dp_rank]
            for micro, current in zip(micros, actor.compute_logprobs(micros), strict=True):
                micro.old_logprobs = current + ((micro.target_ids % 7).float() / 7 - 0.4) * micro.loss_mask
            losses[name] = actor.update(micros)
        corrected = _corrected_update(actor, mini_batch(config, layout.dp).micro_batches[actor.parallel.dp_rank])
        branched = [_branched_update(actor, layout, folder, loss) for loss in ("clip", "gspo")]
        weights = {name: tensor.clone() for name, tensor in actor.export_hf_weights()}
        _record(actor, layout, folder / f"{layout.name}.parquet")
        return Outcome(updates, logprobs, resumed, is_same, losses, corrected, branched, weights)


def run_in_bfloat16(layout: Layout, folder: Path, *, rank: int, init_method: str | None) -> tuple[UpdateTrace, bool]:
    """Train three steps; then check that an update after offloading is bit-identical."""
    config = layout.config(folder)
    with Actor(config, rank=rank, world_size=layout.world_size, init_method=init_method, num_threads=1) as actor:
        micros = mini_batch(config, layout.dp).micro_batches[actor.parallel.dp_rank]
        updates = trace_updates(actor, micros)
        actor.save_checkpoint(folder / f"{layout.name}.checkpoint")
        actor.update(micros)
        expected = {name: tensor.clone() for name, tensor in actor.export_hf_weights()}
        actor.load_checkpoint(folder / f"{layout.name}.checkpoint")
        return updates, _is_same_offloaded(actor, micros, expected)


def _is_same_offloaded(actor: Actor, micros: list[MicroBatch], expected: dict[str, Tensor]) -> bool:
    """Update after loading a state and offloading it to the host and back."""
    actor.offload()
    assert not any(p.untyped_storage().nbytes() for chunk in actor.chunks for p in chunk.parameters())
    actor.update(micros)
    return all(torch.equal(tensor, expected[name]) for name, tensor in actor.export_hf_weights())


def _corrected_update(actor: Actor, micros: list[MicroBatch]) -> dict[str, float]:
    """Set the engine's log-probs up to 0.6 from the current ones, as a function of the token."""
    actor.objective = replace(actor.objective, loss=LOSSES["clip"], correction=CORRECTION)
    for micro, current in zip(micros, actor.compute_logprobs(micros), strict=True):
        micro.old_logprobs = current
        micro.rollout_logprobs = current + ((micro.target_ids * 31 % 13).float() / 10 - 0.6) * micro.loss_mask
    return actor.update(micros)


def _branched_update(actor: Actor, layout: Layout, folder: Path, loss: str) -> dict[str, float]:
    """Old log-probs are up to 0.06 from the current ones, the engine's up to 0.6, as functions of the token."""
    config = layout.config(folder)
    config.rl_config.share_prompt_prefix = layout.world_size > 1
    (mini,) = pack_samples(tree_samples(1), packing_layout(config, num_data_parallel=layout.dp)).mini_batches
    micros = mini.micro_batches[actor.parallel.dp_rank]
    actor.objective = replace(actor.objective, loss=LOSSES[loss])
    for micro, current in zip(micros, actor.compute_logprobs(micros), strict=True):
        micro.old_logprobs = current + ((micro.target_ids % 7).float() / 50 - 0.06) * micro.loss_mask
        micro.rollout_logprobs = current + ((micro.target_ids * 31 % 13).float() / 10 - 0.6) * micro.loss_mask
    return actor.update(micros)


def _record(actor: Actor, layout: Layout, path: Path) -> None:
    """One more update, as the training loop does it, whose tokens are recorded."""
    plan = plan_samples(update_samples(), packing_layout(layout.config(path.parent), num_data_parallel=layout.dp))
    share = share_of(plan, actor.dp_rank)
    actor.load_batch(share, share.sources)
    actor.fill_old_logprobs()
    actor.fill_loss({i: plan.weights[i] for i in share.rows}, {i: plan.advantages[i] for i in share.rows})
    actor.update_on(0, RunPlace(4, 10, is_recorded=True), 0.0)
    actor.record_tokens(path)


def mini_batch(config: Config, num_data_parallel: int) -> MiniBatch:
    """The samples of the test as one mini-batch."""
    (only,) = pack_samples(update_samples(), packing_layout(config, num_data_parallel=num_data_parallel)).mini_batches
    return with_logprobs(only)


def by_sequence(micros: list[MicroBatch], logprobs: list[Tensor]) -> dict[tuple[int, ...], Tensor]:
    """Log-probs of each sample's sampled tokens."""
    found = {}
    for micro, values in zip(micros, logprobs, strict=True):
        for sample in set(micro.sample_ids.tolist()) - {-1}:
            is_own = micro.sample_ids == sample
            found[tuple(micro.target_ids[is_own].tolist())] = values[is_own]
    return found
