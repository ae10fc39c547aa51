"""Checks of a run's parts before a process starts: names, rewards, tools, data, model, devices, places."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from rl.algorithms.advantages import ADVANTAGES, NEED_CRITIC
from rl.algorithms.importance import REJECTIONS
from rl.algorithms.losses import LOSSES
from rl.chat.parsers import check_parser_name
from rl.chat.templates import TEMPLATES
from rl.config.device import runs_on_cuda
from rl.config.model_facts import find_model_facts
from rl.config.problems import Problem, error, note, warning
from rl.config.schema import Config, Device, ResumeMode
from rl.config.validate import Task
from rl.data.rows import recorded_prompt_type
from rl.errors import ConfigError, DataError, ModelError, RewardError, ToolError, unknown_name
from rl.observability.trackers import check_trackers
from rl.rewards.registry import Reward, misspelled_kwargs
from rl.rewards.rows import row_problems
from rl.run.parts import RunParts
from rl.run.resume import check_weights
from rl.tools.registry import Toolbox
from rl.training.families import FAMILIES
from rl.training.hf_files import damaged_files

_SERVICE_TIMEOUT_S = 15.0


def name_problems(config: Config, task: Task) -> Iterator[Problem]:
    """Check names against the tables they are looked up in."""
    rl = config.rl_config
    yield from _parser_problems(rl.tool_parser_format)
    if rl.prompt_type not in TEMPLATES:
        yield error(unknown_name("rl_config.prompt_type", rl.prompt_type, TEMPLATES))
    if task is not Task.TRAIN:
        return
    rejection = rl.rollout_correction.rollout_rs
    if rejection is not None and rejection not in REJECTIONS:
        yield error(unknown_name("rl_config.rollout_correction.rollout_rs", rejection, REJECTIONS))
    if rl.adv_estimator in NEED_CRITIC:
        yield error(
            f"rl_config.adv_estimator: {rl.adv_estimator} needs a critic, which is not supported. "
            f"Choose from {', '.join(ADVANTAGES)}."
        )
    elif rl.adv_estimator not in ADVANTAGES:
        yield error(unknown_name("rl_config.adv_estimator", rl.adv_estimator, ADVANTAGES))
    losses = [name for name in LOSSES if name != "sft"]
    if rl.policy_loss not in losses:
        yield error(unknown_name("rl_config.policy_loss", rl.policy_loss, losses))


def _parser_problems(name: str) -> Iterator[Problem]:
    try:
        check_parser_name(name)
    except ConfigError as failure:
        yield error(str(failure))


def reward_problems(parts: RunParts) -> Iterator[Problem]:
    """Check that the rewards load, and that other keys name them."""
    rl = parts.config.rl_config
    for name in rl.verifier_kwargs:
        if (problem := misspelled_kwargs(name, rl.verifier_function)) is not None:
            yield error(problem)
        elif name not in rl.verifier_function:
            yield warning(
                f"rl_config.verifier_kwargs.{name}: has no effect, because verifier_function does not name it. "
                "Set it to null; this also removes an inherited entry."
            )
    for found in parts.rewards:
        if isinstance(found, RewardError):
            yield error(str(found))
            continue
        metric = rl.filter_groups_metric
        gives_metrics = inspect.signature(found.function).return_annotation not in (float, "float")
        if rl.filter_groups_enable and metric.startswith(f"{found.name}/") and not gives_metrics:
            yield error(
                f"rl_config.filter_groups_metric: {found.name} returns its score alone, got '{metric}'. "
                f"Set {found.name}, or score."
            )


def tool_problems(parts: RunParts, *, is_strict: bool) -> Iterator[Problem]:
    """Check the tool YAML, and ask the services behind the tools."""
    try:
        toolbox = parts.toolbox
    except ToolError as failure:
        yield error(str(failure))
        return
    if toolbox is not None:
        yield from map(warning, toolbox.warnings)
        yield from _service_problems(toolbox, is_strict=is_strict)


def _service_problems(toolbox: Toolbox, *, is_strict: bool) -> Iterator[Problem]:
    """Ask the services behind the tools. Embedded services start with the run."""
    try:
        asyncio.run(asyncio.wait_for(toolbox.check(), _SERVICE_TIMEOUT_S))
    except (ToolError, TimeoutError) as failure:
        text = str(failure) or f"rl_config.tool_config_path: no answer of a service in {_SERVICE_TIMEOUT_S:.0f} s."
        yield error(text) if is_strict else note(f"{text} Not checked here.")


def evaluation_problems(config: Config) -> Iterator[Problem]:
    """Check that there is something to evaluate on."""
    if not config.megatron_training.eval_data_path:
        yield error("megatron_training.eval_data_path: must name evaluation sets, got nothing. Set a file.")


def data_problems(
    parts: RunParts, keys: tuple[str, ...], *, is_strict: bool, with_rewards: bool = False
) -> Iterator[Problem]:
    """Check data files, and with rewards whether each row can be scored."""
    training = parts.config.megatron_training
    if "data_path" in keys and not training.data_path:
        yield error("megatron_training.data_path: must name a data file, got nothing. Set what `rl preprocess` wrote.")
    for file in (file for key in keys for file in parts.files(key)):
        if not is_strict and not file.path.exists():
            yield note(f"{file.where}: no file '{file.path}' on this machine. Not checked here.")
            continue
        try:
            prompts = parts.prompts(file)
        except DataError as failure:
            yield error(f"{file.where}: {failure}")
            continue
        if with_rewards:
            rewards = [found for found in parts.rewards if isinstance(found, Reward)]
            for problem in row_problems(rewards, prompts, file.path):
                yield error(f"{file.where}: {problem}")


def prompt_type_problems(parts: RunParts) -> Iterator[Problem]:
    """Compare the `prompt_type` that rows were preprocessed for with the one they are rendered with."""
    prompt_type = parts.config.rl_config.prompt_type
    for file in (*parts.files("data_path"), *parts.files("eval_data_path")):
        noted = recorded_prompt_type(file.path)
        if noted not in (None, prompt_type):
            yield warning(
                f"{file.where}: its rows were preprocessed for prompt_type '{noted}', got "
                f"rl_config.prompt_type '{prompt_type}'. Set rl_config.prompt_type={noted}, or preprocess them again."
            )


def model_problems(parts: RunParts, *, is_strict: bool) -> Iterator[Problem]:
    """Check the model's family, weights, tokenizer and chat template."""
    config = parts.config
    facts, _ = find_model_facts(config)
    folder = Path(config.actor_config.load)
    if facts is not None and facts.model_type not in FAMILIES:
        yield error(unknown_name("actor_config.load: model_type", facts.model_type, FAMILIES))
    if not config.actor_config.load or (facts is None and folder.is_dir()):
        return  # reported by the rules between keys
    if not folder.is_dir():
        if is_strict:
            yield error(f"actor_config.load: no folder '{folder}'. Fetch the model, or correct the path.")
        return
    tokenizer = Path(config.megatron_training.tokenizer_name_or_path or folder)
    damages = list(damaged_files(*dict.fromkeys((folder, tokenizer))))
    try:
        if facts is not None and facts.model_type in FAMILIES and not damages:
            check_weights(folder, facts)
    except ModelError as failure:
        damages = [str(failure)]
    if damages:
        yield from map(error, damages)
        return
    names_are_known = not any(_parser_problems(config.rl_config.tool_parser_format))
    if names_are_known and config.rl_config.prompt_type in TEMPLATES:
        with suppress(ToolError):  # reported by _tool_problems
            try:
                _ = parts.dialog
            except (ConfigError, ModelError) as failure:
                yield error(str(failure))


def engine_problems(config: Config, *, is_strict: bool) -> Iterator[Problem]:
    """Check the size of an engine against the device."""
    size, device = config.generate_config.infer_tensor_parallel_size, config.megatron_training.device
    if size > 1 and (device is Device.CPU or (is_strict and not runs_on_cuda(config))):
        yield error(
            f"generate_config.infer_tensor_parallel_size: must be 1 on CPU, where an engine has all its cores anyway, "
            f"got {size}. Set 1; rl_config.rollout_resource.num_devices gives more engines."
        )


def place_problems(config: Config) -> Iterator[Problem]:
    """Check that trackers are installed, and that the run's folder can be made and does not exist."""
    training = config.megatron_training
    try:
        check_trackers(config)
    except ConfigError as failure:
        yield error(str(failure))
    base = Path(training.output_dir)
    there = next(place for place in (base, *base.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield error(
            f"megatron_training.output_dir: no folder can be made in {there}, got '{base}'. Choose a writable one."
        )
    elif training.resume_mode is not ResumeMode.AUTO and training.run_name and (base / training.run_name).exists():
        yield error(
            f"megatron_training.run_name: {base / training.run_name} exists already, and no run overwrites another. "
            "Choose another name, remove the folder, or continue it with megatron_training.resume."
        )


def device_problems(config: Config) -> Iterator[Problem]:
    """Check that the machine has the devices."""
    device = config.megatron_training.device
    if device is Device.CUDA and not torch.cuda.is_available():
        yield error("megatron_training.device: no CUDA device is visible, got cuda. Set auto or cpu.")
    if device is not Device.CPU and torch.cuda.is_available() and config.rl_config.ray_address is None:
        rl, found = config.rl_config, torch.cuda.device_count()
        wanted = rl.actor_resource.num_devices
        wanted += 0 if rl.use_integrated_worker else rl.rollout_resource.num_devices
        if wanted > found:
            yield error(
                f"rl_config.actor_resource.num_devices: the run needs {wanted} devices, this machine has {found}. "
                "Lower the number, or set ray_address of a cluster."
            )
