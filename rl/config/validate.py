"""All checks of a configuration that need nothing but the configuration (and the model's config.json, where it is)."""

from __future__ import annotations

from collections.abc import Iterator

from rl.config.model_facts import find_model_facts
from rl.config.no_effect import no_effect_problems
from rl.config.problems import Problem, Severity
from rl.config.ranges import range_problems
from rl.config.rules import (
    algorithm_problems,
    length_problems,
    multi_turn_problems,
    parallel_problems,
    run_problems,
    sampling_problems,
)
from rl.config.schema import Config


def find_problems(config: Config, given: frozenset[str] = frozenset()) -> list[Problem]:
    """Check each field, then the fields against each other.

    Args:
        config: The configuration.
        given: Dotted paths that were set, for warnings of keys without effect.

    Returns:
        Every problem, not only the first. Rules between fields are not judged while a field is out of its range.
    """
    problems = list(range_problems(config))
    if any(problem.severity is Severity.ERROR for problem in problems):
        return problems
    return [*problems, *_rule_problems(config, given)]


def _rule_problems(config: Config, given: frozenset[str]) -> Iterator[Problem]:
    facts, model_problems = find_model_facts(config)
    yield from run_problems(config)
    yield from model_problems
    yield from parallel_problems(config, facts)
    yield from length_problems(config, facts)
    yield from sampling_problems(config)
    yield from algorithm_problems(config)
    yield from multi_turn_problems(config)
    yield from no_effect_problems(config, given)
