"""Everything that can be known to be wrong before a process starts: names, files, services, memory."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from transformers import AutoConfig

from rl.algorithms.advantages import ADVANTAGES, NEED_CRITIC
from rl.algorithms.importance import REJECTIONS
from rl.algorithms.losses import LOSSES
from rl.config.device import runs_on_cuda
from rl.config.memory_check import memory_problems
from rl.config.model_facts import find_model_facts, head_size
from rl.config.problems import Problem, error, note, raise_errors, warning
from rl.config.schema import Config, Device, ModelConfig
from rl.config.validate import find_problems
from rl.data.prompts import drop_long_prompts, load_prompts
from rl.data.templates import TEMPLATES
from rl.errors import CheckpointError, ConfigError, DataError, ModelError, RewardError, ToolError, unknown_name
from rl.observability.run import find_checkpoint
from rl.rewards.registry import load_rewards
from rl.rollout.dialog import load_dialog
from rl.tools.parsers import check_parser_name
from rl.tools.registry import Toolbox, load_toolbox
from rl.training.families import FAMILIES, family_of
from rl.training.hf_files import open_tensors
from rl.types import Prompt

logger = logging.getLogger(__name__)

_SERVICE_TIMEOUT_S = 15.0


def preflight(config: Config) -> list[Prompt]:
    """Check a training run on this machine.

    Args:
        config: As composed.

    Returns:
        The training prompts of at most `max_prompt_length` tokens.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
        DataError: No prompt is short enough.
    """
    raise_errors(inspect_run(config, is_strict=True))
    training = config.megatron_training
    prompts = load_prompts(Path(training.data_path), training.dataset_additional_keys)
    dialog = load_dialog(config)
    for text in dialog.toolbox.warnings if dialog.toolbox else []:
        logger.warning("%s", text)
    return drop_long_prompts(prompts, dialog.renderer, config.rl_config.max_prompt_length)[0]


def preflight_sft(config: Config) -> None:
    """Check a cold start on this machine: as `preflight`, without rewards, services and engines.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
    """
    raise_errors(
        [
            *find_problems(config),
            *_name_problems(config),
            *_device_problems(config),
            *_resume_problems(config),
            *_data_problems(config, ("data_path",), is_strict=True),
            *_model_problems(config, is_strict=True),
            *memory_problems(config, with_engines=False),
        ]
    )


def preflight_evaluation(config: Config) -> None:
    """Check an evaluation on this machine: as `preflight`, without training prompts, actor and checkpoint.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
    """
    problems = [
        *find_problems(config),
        *_name_problems(config),
        *_reward_problems(config),
        *_tool_problems(config, is_strict=True),
        *_engine_problems(config, is_strict=True),
        *_device_problems(config),
        *_data_problems(config, ("test_data_path",), is_strict=True),
        *_model_problems(config, is_strict=True),
        *memory_problems(config, with_actor=False),
    ]
    if not config.megatron_training.test_data_path:
        problems.append(error("megatron_training.test_data_path: must name held-out prompts, got nothing. Set a file."))
    raise_errors(problems)


def inspect_run(config: Config, given: frozenset[str] = frozenset(), *, is_strict: bool) -> list[Problem]:
    """Collect every problem of a run.

    Args:
        config: As composed.
        given: Dotted paths that were set, for warnings of keys without effect.
        is_strict: Model, data, services and memory must be right on this machine. Otherwise what is absent is noted as
            not checked; what is there is checked all the same.

    Returns:
        All problems.
    """
    problems = find_problems(config, given)
    problems += _name_problems(config)
    problems += _reward_problems(config)
    problems += _tool_problems(config, is_strict=is_strict)
    problems += _engine_problems(config, is_strict=is_strict)
    if is_strict:
        problems += _device_problems(config)
        problems += _resume_problems(config)
        problems += memory_problems(config)
    problems += _data_problems(config, ("data_path", "test_data_path"), is_strict=is_strict)
    problems += _model_problems(config, is_strict=is_strict)
    return problems


def _name_problems(config: Config) -> Iterator[Problem]:
    """Names against the tables they are looked up in."""
    rl = config.rl_config
    tables = {
        "adv_estimator": ADVANTAGES,
        "policy_loss": [name for name in LOSSES if name != "sft"],
        "prompt_type": TEMPLATES,
    }
    yield from _parser_problems(rl.tool_parser_format)
    rejection = rl.rollout_correction.rollout_rs
    if rejection is not None and rejection not in REJECTIONS:
        yield error(unknown_name("rl_config.rollout_correction.rollout_rs", rejection, REJECTIONS))
    for key, table in tables.items():
        name = getattr(rl, key)
        if key == "adv_estimator" and name in NEED_CRITIC:
            yield error(
                f"rl_config.adv_estimator: {name} needs a critic, and none is trained here. "
                f"Choose from {', '.join(ADVANTAGES)}."
            )
        elif name not in table:
            yield error(unknown_name(f"rl_config.{key}", name, table))


def _parser_problems(name: str) -> Iterator[Problem]:
    try:
        check_parser_name(name)
    except ConfigError as failure:
        yield error(str(failure))


def _reward_problems(config: Config) -> Iterator[Problem]:
    rl = config.rl_config
    if len(rl.verifier_function) != len(rl.verifier_weight):
        return  # told by the rules between fields
    for name, weight in zip(rl.verifier_function, rl.verifier_weight, strict=True):
        kwargs = {name: rl.verifier_kwargs[name]} if name in rl.verifier_kwargs else {}
        try:
            (reward,) = load_rewards([name], [weight], kwargs, rl.verifier_timeout).rewards
        except RewardError as failure:
            yield error(str(failure))
            continue
        metric = rl.filter_groups_metric
        gives_metrics = inspect.signature(reward.function).return_annotation not in (float, "float")
        if rl.filter_groups_enable and metric.startswith(f"{name}/") and not gives_metrics:
            yield error(
                f"rl_config.filter_groups_metric: {name} returns its score alone, got '{metric}'. Set {name}, or score."
            )


def _tool_problems(config: Config, *, is_strict: bool) -> Iterator[Problem]:
    rl = config.rl_config
    if not rl.multi_turn_enable or not rl.tool_config_path:
        return
    try:
        toolbox = load_toolbox(Path(rl.tool_config_path))
    except ToolError as failure:
        yield error(str(failure))
        return
    yield from map(warning, toolbox.warnings)
    yield from _service_problems(toolbox, is_strict=is_strict)


def _service_problems(toolbox: Toolbox, *, is_strict: bool) -> Iterator[Problem]:
    """Ask the services behind the tools; embedded ones start with the run."""
    try:
        asyncio.run(asyncio.wait_for(toolbox.check(), _SERVICE_TIMEOUT_S))
    except (ToolError, TimeoutError) as failure:
        text = str(failure) or f"rl_config.tool_config_path: a service gave no answer in {_SERVICE_TIMEOUT_S:.0f} s."
        yield error(text) if is_strict else note(f"{text} Not checked here.")


def _data_problems(config: Config, keys: tuple[str, ...], *, is_strict: bool) -> Iterator[Problem]:
    training = config.megatron_training
    if "data_path" in keys and not training.data_path:
        yield error("megatron_training.data_path: must name a data file, got nothing. Set what `rl preprocess` wrote.")
    for key in keys:
        path = getattr(training, key)
        if not path:
            continue
        if not is_strict and not Path(path).exists():
            yield note(f"megatron_training.{key}: no file '{path}' on this machine. Not checked here.")
            continue
        try:
            load_prompts(Path(path), training.dataset_additional_keys)
        except DataError as failure:
            yield error(f"megatron_training.{key}: {failure}")


def _model_problems(config: Config, *, is_strict: bool) -> Iterator[Problem]:
    """The model's family, its tokenizer and its chat template."""
    facts, _ = find_model_facts(config)
    folder = Path(config.actor_config.load)
    if facts is not None and facts.model_type not in FAMILIES:
        yield error(unknown_name("actor_config.load: model_type", facts.model_type, FAMILIES))
    if not config.actor_config.load or (facts is None and folder.is_dir()):
        return  # told by the rules between fields
    if not folder.is_dir():
        if is_strict:
            yield error(f"actor_config.load: no folder '{folder}'. Fetch the model, or correct the path.")
        return
    try:
        if facts is not None and facts.model_type in FAMILIES:
            _check_weights(folder, facts)
    except ModelError as failure:
        yield error(str(failure))
    names_are_known = not any(_parser_problems(config.rl_config.tool_parser_format))
    if names_are_known and config.rl_config.prompt_type in TEMPLATES:
        with suppress(ToolError):  # told by _tool_problems
            try:
                load_dialog(config)
            except (ConfigError, ModelError) as failure:
                yield error(str(failure))


def _check_weights(folder: Path, facts: ModelConfig) -> None:
    """Each tensor that the family has must be there, and be of the size that config.json says.

    Raises:
        ModelError: A file is missing or corrupt, a tensor is missing, or has another size.
    """
    hf_config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    rules = family_of(hf_config).rules(is_tied=hf_config.tie_word_embeddings)
    names = {name.format(layer=layer) for layer in range(facts.num_hidden_layers) for rule in rules for name in rule.hf}
    sizes = {
        "embed_tokens": (facts.vocab_size, facts.hidden_size),
        "q_proj": (facts.num_attention_heads * head_size(facts), facts.hidden_size),
        "k_proj": (facts.num_key_value_heads * head_size(facts), facts.hidden_size),
        "up_proj": (facts.intermediate_size, facts.hidden_size),
    }
    with ExitStack() as stack:
        read = open_tensors(folder, stack)
        for name in sorted(names):
            found = tuple(read(name).shape)  # a view of the mapped file
            wanted = sizes.get(name.split(".")[-2], found)
            if name.endswith(".weight") and found != wanted:
                raise ModelError(
                    f"{folder}: {name}: config.json says {wanted}, got {found}. Config and weights are of different "
                    "models: fetch the model again."
                )


def _resume_problems(config: Config) -> Iterator[Problem]:
    if config.megatron_training.resume:
        try:
            find_checkpoint(Path(config.megatron_training.resume))
        except CheckpointError as failure:
            yield error(str(failure))


def _engine_problems(config: Config, *, is_strict: bool) -> Iterator[Problem]:
    size, device = config.generate_config.infer_tensor_parallel_size, config.megatron_training.device
    if size > 1 and (device is Device.CPU or (is_strict and not runs_on_cuda(config))):
        yield error(
            f"generate_config.infer_tensor_parallel_size: must be 1 on CPU, where an engine has all its cores anyway, "
            f"got {size}. Set 1; rl_config.rollout_resource.num_devices gives more engines."
        )


def _device_problems(config: Config) -> Iterator[Problem]:
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
