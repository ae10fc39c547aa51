"""The policy's optimizer: gradient buffers, Adam with float32 main parameters, clipping, learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.parallel_state import get_data_parallel_world_size
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from rl.batches import RunPlace
from rl.config.schema import Config
from rl.training.parallel import ParallelState


@dataclass(slots=True, frozen=True)
class StepResult:
    """Result of one optimizer step."""

    grad_norm: float
    """Before clipping; not finite if the step was skipped."""
    lr: float
    is_skipped: bool


def wrap_chunks(chunks: list[Any], config: Config) -> list[Any]:
    """Wrap chunks in Megatron's data parallelism: float32 gradient buffers, summed over data-parallel ranks.

    The sum is not averaged, because the model's config sets `calculate_per_token_loss`.

    Args:
        chunks: From `rl.training.model.build_model`, with loaded weights.
        config: Reads `megatron_training.use_distributed_optimizer`.
    """
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=False,
        use_distributed_optimizer=_uses_distributed_optimizer(config),
    )
    wrapped = []
    for index, chunk in enumerate(chunks):
        assert chunk.config.calculate_per_token_loss, "without it Megatron averages gradients over ranks"
        chunk.config.finalize_model_grads_func = finalize_model_grads
        _mark_sharded(chunk)
        wrapped.append(DistributedDataParallel(chunk.config, ddp_config, chunk, disable_bucketing=index > 0))
    return wrapped


class PolicyOptimizer:
    """Adam over this rank's share of the parameters, and the learning-rate schedule.

    Args:
        chunks: From `wrap_chunks`.
        config: Reads `actor_config` and `megatron_training`.
        parallel: This rank's place.
        num_steps: Length of the schedule in steps of the run, as known at the start.
    """

    def __init__(self, chunks: list[Any], config: Config, parallel: ParallelState, *, num_steps: int) -> None:
        self.chunks, self.parallel, self.config, self.run_length = chunks, parallel, config, num_steps
        self.clip_grad = config.actor_config.clip_grad
        chained = get_megatron_optimizer(_optimizer_config(config), chunks, use_gloo_process_groups=False)
        # The chain has one optimizer; only experts have a second one.
        (self.megatron,) = chained.chained_optimizers
        self.adam: torch.optim.Optimizer | None = self.megatron.optimizer
        if self.adam is not None and USING_PYTORCH_OPTIMIZER:
            for group in self.adam.param_groups:
                group["fused"] = True  # one pass over memory instead of ten
        self.scheduler = _scheduler(self.megatron, config, num_steps)

    def zero_grad(self) -> None:
        """Set the gradients to zero."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.megatron.zero_grad()

    @torch.no_grad()
    def step(self, place: RunPlace | None = None) -> StepResult:
        """Clip and apply the gradients. If the gradient norm is not finite, only the schedule advances.

        Args:
            place: Step of the run that this update belongs to; by default the one after the previous call's.
        """
        self._schedule(place or RunPlace(self.num_steps, self.run_length))
        lr = self.lr
        self.megatron.prepare_grads()
        grad_norm = float(self.megatron.get_grad_norm())
        is_finite = math.isfinite(grad_norm)
        if is_finite:
            if self.clip_grad > 0 and self.megatron.get_parameters():
                clip_grad_by_total_norm_fp32(self.megatron.get_parameters(), self.clip_grad, grad_norm)
            self.megatron.step_with_ready_grads()
        self.scheduler.step(1)
        return StepResult(grad_norm, lr, is_skipped=not is_finite)

    @property
    def lr(self) -> float:
        """Learning rate of the schedule's current step."""
        return float(self.scheduler.get_lr({}))

    @property
    def num_updates(self) -> int:
        """Number of Adam steps, for the bias correction."""
        if self.adam is None:
            return 0
        if not USING_PYTORCH_OPTIMIZER:
            return max((int(group.get("step", 0)) for group in self.adam.param_groups), default=0)
        return max((int(state["step"]) for state in self.adam.state.values() if "step" in state), default=0)

    def gather_state(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Join one of `STATE_NAMES` for a parameter of this rank over the data-parallel ranks.

        A collective over the data-parallel group. Moments are zero before the first Adam step.
        """
        owned = self._owned(parameter)
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if owned is not None:
            main, start, end = owned
            state = {"main_param": main} | (self.adam.state.get(main, {}) if self.adam is not None else {})
            if name in state:
                whole[start:end] = state[name].detach().reshape(-1)
        if self.parallel.dp_size > 1 and self._is_distributed:
            dist.all_reduce(whole, group=self.parallel.dp_group)
        return whole.view(parameter.shape)

    @torch.no_grad()
    def scatter_state(self, parameter: nn.Parameter, name: str, whole: Tensor) -> None:
        """Reverse `gather_state`: store this rank's share of a whole tensor. `main_param` also sets the model."""
        if name == "main_param":
            parameter.copy_(whole)
        owned = self._owned(parameter)
        if owned is None or self.adam is None:
            return
        main, start, end = owned
        share = whole.reshape(-1)[start:end].view(main.shape).to(main.device, torch.float32)
        if name == "main_param":
            main.copy_(share)
        else:
            self.adam.state[main][name] = share.clone()

    def restore_progress(self, *, num_steps: int, num_updates: int) -> None:
        """Set the completed steps of the run and of Adam; call after `scatter_state`."""
        self._schedule(RunPlace(num_steps, self.run_length))
        if self.adam is None:
            return
        for group in self.adam.param_groups:
            if not USING_PYTORCH_OPTIMIZER:
                group["step"] = num_updates
                continue
            for main in group["params"]:
                self.adam.state[main]["step"] = torch.tensor(float(num_updates), device=main.device)

    @property
    def num_steps(self) -> int:
        """Steps of the run that the schedule has completed."""
        return int(self.scheduler.num_steps)

    def state_tensors(self) -> list[Tensor]:
        """This rank's main parameters and Adam moments."""
        if self.adam is None:
            return []
        mains = [main for group in self.adam.param_groups for main in group["params"]]
        moments = [v for state in self.adam.state.values() for v in state.values() if isinstance(v, Tensor)]
        return mains + [moment for moment in moments if moment.numel() > 1]

    def _schedule(self, place: RunPlace) -> None:
        """Set the learning rate for a step of the run."""
        if place.num_steps != self.run_length:
            self.run_length = place.num_steps
            self.scheduler = _scheduler(self.megatron, self.config, place.num_steps)
        self.scheduler.num_steps = 0
        self.scheduler.step(place.step)

    @property
    def _is_distributed(self) -> bool:
        return isinstance(self.megatron, DistributedOptimizer)

    def _owned(self, parameter: nn.Parameter) -> tuple[Tensor, int, int] | None:
        """The main parameter that this rank updates, and its range in the flat parameter; None if it has no share."""
        if not self._is_distributed:
            return getattr(parameter, "main_param", parameter), 0, parameter.numel()
        if parameter not in self.megatron.model_param_gbuf_map:
            return None
        span = self.megatron._get_model_param_range_map(parameter)["param"]
        group, order = self.megatron.model_param_group_index_map[parameter]
        return self.megatron.optimizer.param_groups[group]["params"][order], span.start, span.end


def _uses_distributed_optimizer(config: Config) -> bool:
    """Whether to use the distributed optimizer; with a single data-parallel rank it would only copy buffers."""
    return config.megatron_training.use_distributed_optimizer and get_data_parallel_world_size() > 1


def _mark_sharded(chunk: nn.Module) -> None:
    """Mark parameters that are split over tensor-parallel ranks.

    Megatron sets the mark only when it initializes weights. Without it, Megatron treats the shards of all but the first
    rank as duplicates and excludes them from the gradient norm.
    """
    for module in chunk.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear | VocabParallelEmbedding):
            weight = module.weight
            if weight is not None and not hasattr(weight, "tensor_model_parallel"):
                dim = 1 if isinstance(module, RowParallelLinear) else 0
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dim, stride=1)


def _optimizer_config(config: Config) -> OptimizerConfig:
    actor, training = config.actor_config, config.megatron_training
    return OptimizerConfig(
        optimizer="adam",
        lr=actor.lr,
        min_lr=actor.min_lr,
        weight_decay=actor.weight_decay,
        adam_beta1=actor.adam_beta1,
        adam_beta2=actor.adam_beta2,
        adam_eps=actor.adam_eps,
        clip_grad=actor.clip_grad,
        bf16=training.bf16,
        params_dtype=torch.bfloat16 if training.bf16 else torch.float32,
        use_distributed_optimizer=_uses_distributed_optimizer(config),
    )


def _scheduler(optimizer: Any, config: Config, num_steps: int) -> OptimizerParamScheduler:
    """Build the learning-rate schedule. All optimizer steps in one step of the run use the same learning rate.

    With n steps numbered from 0, w of them warm-up: lr (k + 1) / (w + 1) in step k < w, lr in step w, `min_lr` in step
    n - 1.
    """
    actor = config.actor_config
    total = max(1, num_steps)
    warmup = round(actor.lr_warmup_fraction * total)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=actor.lr / (warmup + 1),  # with 0, the first step would have no effect
        max_lr=actor.lr,
        min_lr=actor.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=max(total - 1, warmup + 1),
        lr_decay_style=str(actor.lr_decay_style),
        start_wd=actor.weight_decay,
        end_wd=actor.weight_decay,
        wd_incr_steps=total,
        wd_incr_style="constant",
    )
