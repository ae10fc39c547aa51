"""Loads the configured reward functions and scores trajectories."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from rl.config.imports import import_target, split_convention
from rl.config.moved import SAME_REWARDS
from rl.config.schema import RLConfig
from rl.errors import RewardError, raise_if_quit, unknown_name
from rl.rewards import rules, search
from rl.rewards.conventions import RewardFunction, adapt, check_arguments, convention_of, is_async
from rl.rewards.outcome import LARGEST_SCORE, Outcome, read_outcome
from rl.rewards.pool import RewardPool
from rl.rewards.process_worker import RewardProcess
from rl.types import Scores, Trajectory

REWARDS: dict[str, RewardFunction] = {
    "base_acc": rules.base_acc,
    "environment": rules.environment,
    "format": rules.format_reward,
    "gsm8k_boxed": rules.gsm8k_boxed,
    "math_acc": rules.math_acc,
    "reasoning_gym": rules.reasoning_gym,
    "retool_reward": rules.retool_reward,
    "search_em": search.search_em,
    "search_f1": search.search_f1,
}
"""Built-in rewards by name."""

_MIN_SIMILARITY = 0.85
"""Similarity from which an import path counts as a misspelling of another."""

_IN_PROCESS = frozenset({"base_acc", "environment", "format", "gsm8k_boxed", "search_em", "search_f1"})
"""Rewards that only compare text; they run in this process. The others run in their own, because sympy can hang."""


@dataclass(slots=True)
class Reward:
    """One reward function of a run."""

    name: str
    weight: float
    function: RewardFunction
    kwargs: dict[str, Any]
    target: str
    """Import path with the prefix of its convention, for a separate process."""
    isolate: bool
    """Run in a separate process, which is killed at the deadline."""


class RewardSet:
    """The rewards of a run.

    Args:
        rewards: The rewards.
        timeout: Deadline of one call, in seconds.
        num_processes: Concurrent calls per isolated reward.
        in_caller: For breakpoints: call every reward in the thread that calls `score`, without a deadline.
    """

    def __init__(
        self, rewards: list[Reward], timeout: float, num_processes: int = 1, *, in_caller: bool = False
    ) -> None:
        self.rewards = rewards
        self.timeout = timeout
        self._in_caller = in_caller
        self._pools = {
            reward.name: RewardPool(partial(RewardProcess, reward.target, reward.kwargs), num_processes)
            for reward in rewards
            if reward.isolate
        }

    async def score(self, trajectory: Trajectory) -> Scores:
        """Call every reward for a complete trajectory. Token ids are not needed.

        score = sum of weight * reward over the rewards that apply, or None if a reward raised, exceeded its deadline or
        returned no number, or if none applies.
        `turn_rewards` is the weighted sum of the rewards' turn scores.
        """
        outcomes = await asyncio.gather(*(self._call(reward, trajectory) for reward in self.rewards))
        scores, total, errors = Scores(), 0.0, []
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            if isinstance(outcome, str):
                errors.append(f"{reward.name}: {outcome}")
                continue
            if math.isnan(outcome.score):
                continue
            scores.rewards[reward.name] = outcome.score
            scores.rewards.update({f"{reward.name}/{metric}": value for metric, value in outcome.metrics.items()})
            scores.reward_texts.update({f"{reward.name}/{key}": text for key, text in outcome.texts.items()})
            total += reward.weight * outcome.score
            if outcome.turn_scores:
                before = scores.turn_rewards or [0.0] * len(trajectory.turns)
                added = zip(before, outcome.turn_scores, strict=True)
                scores.turn_rewards = [given + reward.weight * score for given, score in added]
        if not errors and not scores.rewards:
            errors.append("no reward applies to this trajectory")
        if not abs(total) <= LARGEST_SCORE:
            errors.append(f"the weighted sum is {total:g}, not a finite number")
        scores.score = None if errors else total
        scores.reward_error = "; ".join(errors) or None
        return scores

    def close(self) -> None:
        """Kill the processes of isolated rewards."""
        for pool in self._pools.values():
            pool.close()

    async def _call(self, reward: Reward, trajectory: Trajectory) -> Outcome | str:
        """Call a reward; return its outcome or an error text."""
        limit: float | None = None  # a process enforces the deadline itself
        if self._in_caller:
            task = asyncio.ensure_future(_call_here(reward, trajectory, in_thread=False))
        elif reward.isolate:
            task = asyncio.ensure_future(self._pools[reward.name].call(trajectory, self.timeout))
        else:
            task = asyncio.ensure_future(_call_here(reward, trajectory, in_thread=True))
            limit = self.timeout
        task.add_done_callback(_retrieve_exception)
        try:
            done, _ = await asyncio.wait({task}, timeout=limit)
        finally:
            task.cancel()
        if not done or task.cancelled():
            return f"no score within {self.timeout:g} s"
        error = task.exception()
        if error is not None:
            return str(error) if reward.isolate and not self._in_caller else f"{type(error).__name__}: {error}"
        return task.result()


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve an exception raised after the deadline, so that asyncio does not log its traceback."""
    if not task.cancelled():
        task.exception()


async def _call_here(reward: Reward, trajectory: Trajectory, *, in_thread: bool) -> Outcome | str:
    """Call a reward in this process, on the event loop or, a plain function, in a thread."""
    try:
        if is_async(reward.function):
            value = await reward.function(trajectory, **reward.kwargs)
        elif in_thread:
            value = await asyncio.to_thread(reward.function, trajectory, **reward.kwargs)
        else:
            value = reward.function(trajectory, **reward.kwargs)
    except Exception as error:
        raise_if_quit(error)  # here, before the event loop begins the next call
        raise
    return read_outcome(value, len(trajectory.turns))


def configured_rewards(rl: RLConfig) -> RewardSet:
    """Load the rewards of a configuration; see `load_rewards`."""
    return load_rewards(
        rl.verifier_function, rl.verifier_weight, rl.verifier_kwargs, rl.verifier_timeout, rl.verifier_parallel,
        in_caller=rl.in_process,
    )  # fmt: skip


def load_rewards(
    names: Sequence[str],
    weights: Sequence[float],
    kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    timeout: float = 30.0,
    num_processes: int = 1,
    *,
    in_caller: bool = False,
) -> RewardSet:
    """Load the configured rewards.

    Args:
        names: Registered names, `package.module:function` or `path/file.py:function`; see `rl.rewards.conventions` for
            prefixes.
        weights: One weight per name.
        kwargs: Keyword arguments by name; those for other known rewards are ignored.
        timeout: Deadline of one call, in seconds.
        num_processes: Concurrent calls per isolated reward.
        in_caller: See `RewardSet`.

    Returns:
        The rewards. Processes start on first use.

    Raises:
        RewardError: A name, a weight or a keyword argument is wrong.
    """
    if not names:
        raise RewardError(
            f"rl_config.verifier_function: needs a reward, got none. Known: {', '.join(sorted(REWARDS))}."
        )
    if len(names) != len(weights):
        raise RewardError(
            f"rl_config.verifier_weight: needs a weight for each of the {len(names)} rewards, got {len(weights)}."
        )
    if len(set(names)) != len(names):
        raise RewardError(f"rl_config.verifier_function: names must differ, got {', '.join(names)}.")
    kwargs = kwargs or {}
    for name in kwargs:
        if (problem := misspelled_kwargs(name, names)) is not None:
            raise RewardError(problem)
    rewards = [_load(name, weight, dict(kwargs.get(name, {}))) for name, weight in zip(names, weights, strict=True)]
    return RewardSet(rewards, timeout, num_processes, in_caller=in_caller)


def misspelled_kwargs(name: str, names: Sequence[str]) -> str | None:
    """Return an error text if keyword arguments name no reward, probably because of a misspelling.

    Arguments for rewards that are not chosen are legal, because a configuration inherits them from its base. They
    belong to a built-in reward, or to an import path that resembles none of the chosen ones.

    Args:
        name: A key of `rl_config.verifier_kwargs`.
        names: `rl_config.verifier_function`.
    """
    if name in names or name in REWARDS:
        return None
    if ":" in name and not get_close_matches(name, names, n=1, cutoff=_MIN_SIMILARITY):
        return None
    return unknown_name("rl_config.verifier_kwargs", name, names)


def _load(name: str, weight: float, kwargs: dict[str, Any]) -> Reward:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RewardError(f"rl_config.verifier_weight: must be a number, got {weight!r} for '{name}'. Set 1.0.")
    if ":" in name:
        function, target, isolate = adapt(name, _import(name)), name, True
    elif name in REWARDS:
        function, isolate = REWARDS[name], name not in _IN_PROCESS
        target = f"{function.__module__}:{function.__name__}"
    else:
        raise RewardError(_unknown(name))
    _check_kwargs(name, function, kwargs)
    return Reward(name, float(weight), function, kwargs, target, isolate and not is_async(function))


def _unknown(name: str) -> str:
    """What to do about a name that is no reward here."""
    if name in SAME_REWARDS:
        return (
            f"rl_config.verifier_function: '{name}' is '{SAME_REWARDS[name]}' here, which is named already. Remove it, "
            "and its weight."
        )
    if name == "step":
        return (
            "rl_config.verifier_function: MindSpeed-RL's 'step', which counts steps such as `Step 1:`, does not exist "
            "here. Remove it and its weight, or write it as a function: docs/rewards.md."
        )
    advice = " Or give `package.module:function` or `path/file.py:function`."
    return unknown_name("rl_config.verifier_function", name, REWARDS) + advice


def _import(name: str) -> RewardFunction:
    where = f"rl_config.verifier_function: '{name}'"
    try:
        function = import_target(split_convention(name)[1])
    except Exception as error:  # the user's file may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise RewardError(f"{where} does not import: {reason}. Check the path, the name and the file.") from error
    if not callable(function) or inspect.isclass(function):
        got = "a class" if inspect.isclass(function) else type(function).__name__
        raise RewardError(f"{where} is not a function, got {got}. Write `def reward(trajectory)`.")
    return function


def _check_kwargs(name: str, function: RewardFunction, kwargs: dict[str, Any]) -> None:
    """Check that the function can be called with a trajectory and these arguments."""
    if convention_of(name, function):
        check_arguments(name, function, kwargs)
        return
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # functions in C may have no signature
    parameters = list(signature.parameters.values())
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters[1:] if p.kind is not inspect.Parameter.VAR_POSITIONAL]
        for key in kwargs:
            if key not in known:
                raise RewardError(unknown_name(f"rl_config.verifier_kwargs.{name}", key, known))
    try:
        signature.bind(None, **kwargs)
    except TypeError as error:
        raise RewardError(
            f"rl_config.verifier_function: '{name}' cannot be called as reward(trajectory, **kwargs), got {signature} "
            f"and the arguments {', '.join(kwargs) or 'none'}: {error}. Take the trajectory first, and give every "
            "other parameter a default or a value in rl_config.verifier_kwargs."
        ) from error
