"""Prints the output of `rl validate`: the resolved configuration, the arithmetic of a step, and the problems."""

from __future__ import annotations

import math
from collections.abc import Iterable

import yaml
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from rl.config.device_memory import device_memory
from rl.config.estimates import GIB, batch_arithmetic, longest_sample, memory_estimate, object_store_bytes
from rl.config.keys import plain_mapping
from rl.config.problems import Problem, Severity
from rl.config.schema import Config, Device, ModelConfig

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def print_configuration(console: Console, config: Config) -> None:
    """Print every key with its value, as YAML."""
    text = yaml.safe_dump(plain_mapping(config), sort_keys=False, allow_unicode=True)
    console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else escape(text))


def print_arithmetic(console: Console, config: Config, facts: ModelConfig | None) -> None:
    """Print how one step's prompts become optimizer steps, and the memory of each device."""
    parts: list[RenderableType] = [_batch_table(config)]
    if facts is not None:
        parts.append(_memory_table(config, facts))
    console.print(Group(*parts))


def print_problems(console: Console, problems: Iterable[Problem]) -> None:
    """Print the problems, errors first, one to a line."""
    order = list(Severity)
    for problem in sorted(problems, key=lambda found: order.index(found.severity)):
        style = _STYLES[problem.severity]
        console.print(f"[{style}]{problem.severity}[/] {escape(problem.text)}", soft_wrap=True)


def _batch_table(config: Config) -> Table:
    batch, rl = batch_arithmetic(config), config.rl_config
    table = _table("One step")
    table.add_row("prompts", f"{batch.num_prompts:,}", "global_batch_size")
    table.add_row("trajectories", f"{batch.num_trajectories:,}", f"x {rl.n_samples_per_prompt} n_samples_per_prompt")
    table.add_row(
        "mini-batches",
        f"{batch.num_mini_batches:,}",
        f"of at most {batch.trajectories_per_mini_batch:,} trajectories",
    )
    table.add_row(
        "micro-batches",
        f"{batch.micro_batches_per_rank:,}",
        f"at most, of a mini-batch on each of {batch.data_parallel_size} data-parallel ranks: "
        f"{rl.max_packing_token_size:,} tokens, {batch.tokens_per_trajectory:,} for the longest trajectory",
    )
    table.add_row(
        "optimizer steps",
        f"{batch.num_optimizer_steps:,}",
        "on-policy"
        if batch.num_optimizer_steps == 1
        else f"{batch.num_mini_batches} mini-batches x {rl.epochs} epochs",
    )
    table.add_row("object store", _gib(object_store_bytes(config)), "shared memory for the trajectories of two steps")
    return table


def _memory_table(config: Config, facts: ModelConfig) -> Table:
    estimate, generate = memory_estimate(config, facts), config.generate_config
    actor = config.actor_config
    layout = f"tensor {actor.tensor_model_parallel_size} x pipeline {actor.pipeline_model_parallel_size}"
    tokens = max(config.rl_config.max_packing_token_size, longest_sample(config))
    table = _table("Memory of a device, estimated")
    table.add_row("parameters", _gib(estimate.parameter_bytes), f"{estimate.num_parameters / 1e6:,.0f} M, {layout}")
    table.add_row("gradients", _gib(estimate.gradient_bytes), "float32")
    table.add_row("optimizer", _gib(estimate.optimizer_bytes), "main parameters and both moments")
    table.add_row(
        "activations", _gib(estimate.activation_bytes), f"{estimate.micro_batches_in_flight:g} x {tokens:,} tokens"
    )
    if estimate.reference_bytes:
        table.add_row("reference", _gib(estimate.reference_bytes), "its parameters")
    table.add_row("actor in all", _gib(estimate.actor_bytes), "")
    table.add_row(
        "engine parameters",
        _gib(estimate.engine_parameter_bytes),
        f"{generate.dtype}, tensor {generate.infer_tensor_parallel_size}",
    )
    table.add_row(
        "engine cache on CPU",
        _gib(int(generate.kv_cache_memory_gb * GIB)),
        f"{int(generate.kv_cache_memory_gb * GIB / estimate.cache_bytes_per_token):,} tokens of "
        f"{estimate.cache_bytes_per_token / 1024:.0f} KiB; on CUDA what gpu_memory_utilization "
        f"{generate.gpu_memory_utilization:g} leaves",
    )
    if config.megatron_training.device is not Device.CPU:
        _add_cuda_rows(table, config, facts)
    return table


def _add_cuda_rows(table: Table, config: Config, facts: ModelConfig) -> None:
    """Add what every phase needs of a GPU and of its host."""
    need, num_actors = device_memory(config, facts), config.rl_config.actor_resource.num_devices
    table.add_row("update on CUDA", _gib(need.learning_bytes), "the actor, and its processes' own")
    table.add_row(
        "sampling on CUDA",
        _gib(need.resident_bytes),
        f"beside an engine, which takes {need.engine_share:g} of the device and needs {_gib(need.engine_bytes)}",
    )
    smallest = need.smallest_device_bytes
    table.add_row("smallest GPU", _gib(smallest) if math.isfinite(smallest) else "none", "on which every phase fits")
    table.add_row(
        "host on CUDA",
        _gib(need.pinned_bytes * num_actors + need.published_bytes),
        f"{_gib(need.pinned_bytes)} offloaded by each of {num_actors} actors, {_gib(need.published_bytes)} published "
        "weights in /dev/shm",
    )


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    return table


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
