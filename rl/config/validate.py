"""All checks that need only the configuration (and the model's config.json, if it exists)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from rl.config.futile import futile_problems
from rl.config.model_facts import find_model_facts
from rl.config.no_effect import no_effect_problems
from rl.config.problems import Problem
from rl.config.rules import (
    algorithm_problems,
    engine_problems,
    in_process_problems,
    length_problems,
    multi_turn_problems,
    parallel_problems,
    run_problems,
    sampling_problems,
)
from rl.config.schema import Config


class Task(Enum):
    """The purpose of a configuration. A rule applies where its keys are read."""

    TRAIN = "train"
    SFT = "sft"
    EVALUATE = "evaluate"
    ENDPOINT = "endpoint"
    """An evaluation of a model behind a server: no model, tokenizer or engine here."""


def find_problems(config: Config, given: frozenset[str] = frozenset(), task: Task = Task.TRAIN) -> list[Problem]:
    """Check the keys of a configuration against each other.

    Args:
        config: The configuration.
        given: Dotted paths of the keys that were set, for warnings about keys without effect.
        task: Its purpose.

    Returns:
        Every problem, not only the first.
    """
    return list(_rule_problems(config, given, task))


def _rule_problems(config: Config, given: frozenset[str], task: Task) -> Iterator[Problem]:
    yield from run_problems(config)
    yield from in_process_problems(config)
    yield from multi_turn_problems(config)
    if task is Task.ENDPOINT:
        return
    facts, model_problems = find_model_facts(config)
    yield from model_problems
    if task is not Task.EVALUATE:
        yield from parallel_problems(config, facts)
    if task is not Task.SFT:
        yield from length_problems(config, facts)
        yield from engine_problems(config, facts)
    if task is Task.TRAIN:
        yield from sampling_problems(config)
        yield from algorithm_problems(config)
        yield from futile_problems(config)
        yield from no_effect_problems(config, given)
