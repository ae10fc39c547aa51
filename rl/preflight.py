"""Checks before a process starts: names, files, services, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rl.chat.templates import TEMPLATES
from rl.config.memory_check import memory_problems
from rl.config.problems import Problem, Severity, error, raise_errors
from rl.config.rules import is_built_in
from rl.config.schema import Config, ResumeMode
from rl.config.validate import Task, find_problems
from rl.data.cursor import prompt_cursor
from rl.errors import ConfigError, unknown_name
from rl.remote.client import Endpoint
from rl.remote.launch import check_endpoint
from rl.rollout.dialog import Dialog
from rl.rollout.environment_code import load_environment
from rl.rollout.replay import RecordedStep, find_recorded_steps
from rl.rollout.rollout_function import SERVICE, load_rollout_function
from rl.run.checks import (
    data_problems,
    device_problems,
    engine_problems,
    evaluation_problems,
    model_problems,
    name_problems,
    place_problems,
    prompt_type_problems,
    reward_problems,
    tool_problems,
)
from rl.run.parts import RunParts
from rl.run.replay import replay_problems
from rl.run.resume import check_place, resume_problems
from rl.serving.agents import load_agent_function
from rl.serving.server import port_problems, service_key
from rl.types import Prompt

logger = logging.getLogger(__name__)


def preflight(config: Config) -> tuple[list[Prompt], list[Prompt]]:
    """Check a training run on this machine.

    Returns:
        The training prompts and the evaluation prompts, each of at most `max_prompt_length` tokens.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
        DataError: No prompt is short enough.
        CheckpointError: The run to resume had another seed or other prompts.
    """
    if is_served(config):
        raise ConfigError(
            "rl_config.rollout_function: with 'service', clients lead the trajectories. Give the command `rl serve`."
        )
    parts = RunParts(config)
    raise_errors(_run_problems(parts, frozenset(), is_strict=True))
    _log_warnings(prompt_type_problems(parts))
    for text in parts.toolbox.warnings if parts.toolbox else []:
        logger.warning("%s", text)
    kept = parts.short_prompts("data_path")
    check_place(config, prompt_cursor(kept, config), kept)
    return kept, parts.short_prompts("eval_data_path")


def preflight_service(config: Config) -> None:
    """Check a service on this machine: as `preflight`, without data and tools.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
    """
    problems = _run_problems(RunParts(config), frozenset(), is_strict=True)
    training, rl = config.megatron_training, config.rl_config
    if not is_served(config):
        problems.append(
            error(
                f"rl_config.rollout_function: must be 'service' for `rl serve`, got '{rl.rollout_function}'. Set it, "
                "and multi_turn_enable: true."
            )
        )
    for key, value in (("data_path", training.data_path), ("eval_data_path", training.eval_data_path)):
        if value:
            problems.append(error(f"megatron_training.{key}: clients bring the prompts, got '{value}'. Remove it."))
    if rl.tool_config_path:
        problems.append(
            error(f"rl_config.tool_config_path: clients run their own tools, got '{rl.tool_config_path}'. Set null.")
        )
    for key in ("replay", "rollout_only"):
        if getattr(training, key):
            problems.append(error(f"megatron_training.{key}: a service trains on what clients do. Remove it."))
    if training.resume_mode is ResumeMode.AUTO:
        problems.append(
            error(
                "megatron_training.resume_mode: a service also goes on with the groups of clients that no checkpoint "
                "has, got auto. Name its run directory in megatron_training.resume, with resume_mode path."
            )
        )
    problems += port_problems(config.serve_config)
    if rl.in_process:
        problems.append(error("rl_config.in_process: a service has processes of its own. Remove it."))
    raise_errors(problems)
    service_key(config.serve_config.host)


def is_served(config: Config) -> bool:
    """Whether clients of `rl serve` lead the trajectories."""
    return config.rl_config.rollout_function == SERVICE


def preflight_replay(config: Config) -> list[RecordedStep]:
    """Check a run on recorded steps: as `preflight`, without data, rewards, tools and engines.

    Returns:
        The recorded steps.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
    """
    problems = _run_problems(RunParts(config), frozenset(), is_strict=True)
    raise_errors(problems)
    known = {problem.text for problem in find_problems(config)}  # reported when the configuration was composed
    _log_warnings(p for p in problems if p.severity is Severity.WARNING and p.text not in known)
    if config.megatron_training.eval_data_path:
        logger.info("megatron_training.eval_data_path: a replay has no engine and evaluates nothing")
    return find_recorded_steps(Path(str(config.megatron_training.replay)))


def preflight_sft(config: Config) -> Dialog:
    """Check a cold start on this machine: as `preflight`, without rewards, services and engines.

    Returns:
        The tokenizer and the chat template that demonstrations are rendered with.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
    """
    parts = RunParts(config)
    raise_errors(
        [
            *find_problems(config, task=Task.SFT),
            *name_problems(config, Task.SFT),
            *place_problems(config),
            *device_problems(config),
            *resume_problems(config, "sft"),
            *data_problems(parts, ("data_path",), is_strict=True),
            *model_problems(parts, is_strict=True),
            *memory_problems(config, with_engines=False),
        ]
    )
    _log_warnings(prompt_type_problems(parts))
    return parts.dialog


def preflight_evaluation(config: Config) -> list[Prompt]:
    """Check an evaluation on this machine: as `preflight`, without training prompts, actor and checkpoint.

    Returns:
        The evaluation prompts of at most `max_prompt_length` tokens.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
        DataError: No prompt is short enough.
    """
    parts = RunParts(config)
    problems = [
        *find_problems(config, task=Task.EVALUATE),
        *name_problems(config, Task.EVALUATE),
        *place_problems(config),
        *reward_problems(parts),
        *tool_problems(parts, is_strict=True),
        *_environment_problems(config),
        *engine_problems(config, is_strict=True),
        *device_problems(config),
        *data_problems(parts, ("eval_data_path",), is_strict=True, with_rewards=True),
        *model_problems(parts, is_strict=True),
        *memory_problems(config, with_actor=False),
    ]
    problems += evaluation_problems(config)
    raise_errors(problems)
    _log_warnings(prompt_type_problems(parts))
    return parts.short_prompts("eval_data_path")


def preflight_endpoint(config: Config, endpoint: Endpoint) -> list[Prompt]:
    """Check an evaluation of a model behind a server: as `preflight_evaluation`, without model, tokenizer and engine.

    Returns:
        The evaluation prompts.

    Raises:
        ConfigError: Something is wrong; the message has a line for each finding.
        ServiceError: The server does not answer.
    """
    parts, rl = RunParts(config), config.rl_config
    problems = [
        *find_problems(config, task=Task.ENDPOINT),
        *place_problems(config),
        *reward_problems(parts),
        *tool_problems(parts, is_strict=True),
        *data_problems(parts, ("eval_data_path",), is_strict=True, with_rewards=True),
        *evaluation_problems(config),
    ]
    if rl.prompt_type not in TEMPLATES:
        problems.append(error(unknown_name("rl_config.prompt_type", rl.prompt_type, TEMPLATES)))
    for key in ("environment", "rollout_function", "agent_function"):
        if not is_built_in(rl, key):
            problems.append(
                error(
                    f"rl_config.{key}: needs the tokens of an engine, got {getattr(rl, key)} with --endpoint. Evaluate "
                    "a model folder instead: --model FOLDER."
                )
            )
    raise_errors(problems)
    check_endpoint(endpoint)
    return [prompt for file in parts.files("eval_data_path") for prompt in parts.prompts(file)]


def inspect_run(config: Config, given: frozenset[str] = frozenset(), *, is_strict: bool) -> list[Problem]:
    """Collect every problem of a run.

    Args:
        config: As composed.
        given: Dotted paths that were set, for warnings about keys without effect.
        is_strict: Model, data, services and memory must be right on this machine. Otherwise absent parts are noted as
            not checked; existing parts are still checked.
    """
    return _run_problems(RunParts(config), given, is_strict=is_strict)


def run_checks(
    parts: RunParts, given: frozenset[str], *, is_strict: bool
) -> dict[str, Callable[[], Iterable[Problem]]]:
    """The checks of a training run by subject, in an order in which the quick ones come first.

    Args:
        parts: What the run reads.
        given: See `inspect_run`.
        is_strict: See `inspect_run`.
    """
    config = parts.config
    checks: dict[str, Callable[[], Iterable[Problem]]] = {
        "configuration": lambda: [*find_problems(config, given), *name_problems(config, Task.TRAIN)],
    }
    if config.megatron_training.replay:
        return checks | _replay_checks(parts, is_strict=is_strict)
    checks |= {
        "rewards": lambda: reward_problems(parts),
        "tools and services": lambda: tool_problems(parts, is_strict=is_strict),
        "environment": lambda: _environment_problems(config),
        "engine": lambda: engine_problems(config, is_strict=is_strict),
    }
    if is_strict:
        checks |= {
            "run directory": lambda: [
                *place_problems(config),
                *resume_problems(config, "serve" if is_served(config) else "train"),
            ],
            "devices": lambda: device_problems(config),
            "memory": lambda: memory_problems(config, with_actor=not config.megatron_training.rollout_only),
        }
    if is_served(config):
        return checks | {"model and chat template": lambda: model_problems(parts, is_strict=is_strict)}
    keys = ("data_path", "eval_data_path")
    return checks | {
        "data": lambda: [
            *data_problems(parts, keys, is_strict=is_strict, with_rewards=True),
            *prompt_type_problems(parts),
        ],
        "model and chat template": lambda: model_problems(parts, is_strict=is_strict),
    }


def _replay_checks(parts: RunParts, *, is_strict: bool) -> dict[str, Callable[[], Iterable[Problem]]]:
    """The checks of a run on recorded steps: it reads no data and starts no engine, tool or reward."""
    config = parts.config
    checks: dict[str, Callable[[], Iterable[Problem]]] = {"recording": lambda: replay_problems(config)}
    if is_strict:
        checks |= {
            "run directory": lambda: [*place_problems(config), *resume_problems(config, "replay")],
            "devices": lambda: device_problems(config),
            "memory": lambda: memory_problems(config, with_engines=False),
        }
    return checks | {"model and chat template": lambda: model_problems(parts, is_strict=is_strict)}


def _run_problems(parts: RunParts, given: frozenset[str], *, is_strict: bool) -> list[Problem]:
    return [problem for check in run_checks(parts, given, is_strict=is_strict).values() for problem in check()]


def _environment_problems(config: Config) -> Iterator[Problem]:
    """The user's environment, rollout function and agent function: name, signature and keyword arguments."""
    for load in (load_environment, load_rollout_function, load_agent_function):
        try:
            load(config.rl_config)
        except ConfigError as failure:
            yield error(str(failure))


def _log_warnings(problems: Iterator[Problem]) -> None:
    for problem in problems:
        logger.warning("%s", problem.text)
