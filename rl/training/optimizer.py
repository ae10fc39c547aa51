"""Megatron's optimizer for the policy: gradient buffers, Adam with float32 main parameters, clipping, the schedule."""

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
    """How one optimizer step went."""

    grad_norm: float
    """Before clipping; not finite where the step was skipped."""
    lr: float
    is_skipped: bool


def wrap_chunks(chunks: list[Any], config: Config) -> list[Any]:
    """Give the model's chunks contiguous float32 gradient buffers that are summed over data-parallel ranks.

    The sum is not divided by anything: `calculate_per_token_loss` of the model's config sees to that.

    Args:
        chunks: As `rl.training.model.build_model` returned them, filled with weights.
        config: Uses `megatron_training.use_distributed_optimizer`.
    """
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=False,
        use_distributed_optimizer=_shares_state(config),
    )
    wrapped = []
    for index, chunk in enumerate(chunks):
        assert chunk.config.calculate_per_token_loss, "otherwise Megatron averages gradients over ranks"
        chunk.config.finalize_model_grads_func = finalize_model_grads
        _mark_sharded(chunk)
        wrapped.append(DistributedDataParallel(chunk.config, ddp_config, chunk, disable_bucketing=index > 0))
    return wrapped


class PolicyOptimizer:
    """Adam over this rank's share of the parameters, and the learning-rate schedule.

    Args:
        chunks: As `wrap_chunks` returned them.
        config: Uses `actor_config` and `megatron_training`.
        parallel: This rank's place.
        num_steps: Steps of the run, over which the schedule is stretched, as far as is known at its start.
    """

    def __init__(self, chunks: list[Any], config: Config, parallel: ParallelState, *, num_steps: int) -> None:
        self.chunks, self.parallel, self.config, self.run_length = chunks, parallel, config, num_steps
        self.clip_grad = config.actor_config.clip_grad
        chained = get_megatron_optimizer(_optimizer_config(config), chunks, use_gloo_process_groups=False)
        # One optimizer in the chain: a second one exists only for experts.
        (self.megatron,) = chained.chained_optimizers
        self.adam: torch.optim.Optimizer | None = self.megatron.optimizer
        if self.adam is not None and USING_PYTORCH_OPTIMIZER:
            for group in self.adam.param_groups:
                group["fused"] = True  # one pass over memory instead of ten
        self.scheduler = _scheduler(self.megatron, config, num_steps)

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.megatron.zero_grad()

    @torch.no_grad()
    def step(self, place: RunPlace | None = None) -> StepResult:
        """Clip and apply the gradients; a gradient norm that is not finite changes nothing but the schedule.

        Args:
            place: The run's step that this is part of; by default the one after that of the last call.
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
        """Learning rate of the step that the schedule stands at."""
        return float(self.scheduler.get_lr({}))

    @property
    def num_updates(self) -> int:
        """Steps that Adam has taken, for its bias correction."""
        if self.adam is None:
            return 0
        if not USING_PYTORCH_OPTIMIZER:
            return max((int(group.get("step", 0)) for group in self.adam.param_groups), default=0)
        return max((int(state["step"]) for state in self.adam.state.values() if "step" in state), default=0)

    def gather_state(self, parameter: nn.Parameter, name: str) -> Tensor:
        """One of `STATE_NAMES` for a whole parameter of this rank, joined over data-parallel ranks.

        A collective over the data-parallel group; zeros where Adam has not run yet.
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
        """Undo `gather_state`: keep this rank's share of a whole tensor; the main parameter sets the model's too."""
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
        """Go on after `num_steps` of the run and `num_updates` of Adam; call after `scatter_state`."""
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
        """Steps of the run that the schedule has passed."""
        return int(self.scheduler.num_steps)

    def state_tensors(self) -> list[Tensor]:
        """Tensors of the optimizer on the device: main parameters and Adam's moments of this rank's share."""
        if self.adam is None:
            return []
        mains = [main for group in self.adam.param_groups for main in group["params"]]
        moments = [v for state in self.adam.state.values() for v in state.values() if isinstance(v, Tensor)]
        return mains + [moment for moment in moments if moment.numel() > 1]

    def _schedule(self, place: RunPlace) -> None:
        """Set the learning rate to that of a step of the run."""
        if place.num_steps != self.run_length:
            self.run_length = place.num_steps
            self.scheduler = _scheduler(self.megatron, self.config, place.num_steps)
        self.scheduler.num_steps = 0
        self.scheduler.step(place.step)

    @property
    def _is_distributed(self) -> bool:
        return isinstance(self.megatron, DistributedOptimizer)

    def _owned(self, parameter: nn.Parameter) -> tuple[Tensor, int, int] | None:
        """The main parameter that this rank updates, and the range of the flat parameter that it covers."""
        if not self._is_distributed:
            return getattr(parameter, "main_param", parameter), 0, parameter.numel()
        if parameter not in self.megatron.model_param_gbuf_map:
            return None
        span = self.megatron._get_model_param_range_map(parameter)["param"]
        group, order = self.megatron.model_param_group_index_map[parameter]
        return self.megatron.optimizer.param_groups[group]["params"][order], span.start, span.end


def _shares_state(config: Config) -> bool:
    """Whether the distributed optimizer is used: with a single data-parallel rank it only copies its buffers about."""
    return config.megatron_training.use_distributed_optimizer and get_data_parallel_world_size() > 1


def _mark_sharded(chunk: nn.Module) -> None:
    """Say which parameters are split over tensor-parallel ranks.

    Megatron says so itself only where it initializes weights; without the mark it takes every shard but the first
    rank's for a repetition, and leaves it out of the gradient norm.
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
        use_distributed_optimizer=_shares_state(config),
    )


def _scheduler(optimizer: Any, config: Config, num_steps: int) -> OptimizerParamScheduler:
    """The learning rate of each step of the run, from 0: all optimizer steps of one have the same.

    With w warm-up steps of n: lr (k + 1) / (w + 1) in steps k < w, lr in step w, `min_lr` in the last one, n - 1.
    """
    actor = config.actor_config
    total = max(1, num_steps)
    warmup = round(actor.lr_warmup_fraction * total)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=actor.lr / (warmup + 1),  # not 0: the first step would be lost
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
