"""Finds the reward functions that the configuration names, and scores trajectories with them."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.errors import RewardError, unknown_name
from rl.rewards import rules, search
from rl.rewards.process_worker import RewardProcess, import_target
from rl.types import Trajectory

RewardFunction = Callable[..., Any]
"""`reward(trajectory, **kwargs)`, plain or async, returning a number or a dict with `score` and further metrics.

In the dict `turn_scores` is a list with a number for each turn, for `rl_config.turn_credit_coef`."""

REWARDS: dict[str, RewardFunction] = {
    "base_acc": rules.base_acc,
    "format": rules.format_reward,
    "gsm8k_boxed": rules.gsm8k_boxed,
    "math_acc": rules.math_acc,
    "reasoning_gym": rules.reasoning_gym,
    "retool_reward": rules.retool_reward,
    "search_em": search.search_em,
    "search_f1": search.search_f1,
}
"""The project's own rewards by name."""

_LARGEST = 1e18
"""Of a score: its square, in the standard deviation of a group, is still finite in float32."""

_QUICK = frozenset({"base_acc", "format", "gsm8k_boxed", "search_em", "search_f1"})
"""Rewards that only compare text; called where they are. sympy can hang on an answer, so the others get a process."""


@dataclass(slots=True)
class Reward:
    """One reward function of a run."""

    name: str
    weight: float
    function: RewardFunction
    kwargs: dict[str, Any]
    target: str
    """Import path, for a process of its own."""
    isolate: bool
    """Run in a process that is killed at the deadline."""


@dataclass(slots=True)
class _Outcome:
    """What one reward gave to one trajectory."""

    score: float
    metrics: dict[str, float]
    turn_scores: list[float]
    """One for each turn, or none."""


class RewardSet:
    """The rewards of a run."""

    def __init__(self, rewards: list[Reward], timeout: float, num_processes: int = 1) -> None:
        self.rewards = rewards
        self.timeout = timeout
        self._processes = {
            reward.name: [RewardProcess(reward.target, reward.kwargs) for _ in range(num_processes)]
            for reward in rewards
            if reward.isolate
        }
        self._idle: dict[str, asyncio.Queue[RewardProcess]] = {}

    async def score(self, trajectory: Trajectory) -> None:
        """Fill `score`, `rewards`, `turn_rewards` and `reward_error` of a trajectory.

        score = sum of weight * reward; None when one raised, passed its deadline or returned no number. In the same way
        `turn_rewards` sums what the rewards gave to each turn.

        Args:
            trajectory: Complete; changed in place.
        """
        outcomes = await asyncio.gather(*(self._call(reward, trajectory) for reward in self.rewards))
        total, errors = 0.0, []
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            if isinstance(outcome, str):
                errors.append(f"{reward.name}: {outcome}")
                continue
            trajectory.rewards[reward.name] = outcome.score
            trajectory.rewards.update({f"{reward.name}/{metric}": value for metric, value in outcome.metrics.items()})
            total += reward.weight * outcome.score
            if outcome.turn_scores:
                before = trajectory.turn_rewards or [0.0] * len(trajectory.turns)
                added = zip(before, outcome.turn_scores, strict=True)
                trajectory.turn_rewards = [given + reward.weight * score for given, score in added]
        if not abs(total) <= _LARGEST:
            errors.append(f"the weighted sum is {total:g}, not a finite number")
        trajectory.score = None if errors else total
        trajectory.reward_error = "; ".join(errors) or None

    def close(self) -> None:
        """End the processes of isolated rewards."""
        for processes in self._processes.values():
            for process in processes:
                process.close()

    async def _call(self, reward: Reward, trajectory: Trajectory) -> _Outcome | str:
        """The numbers a reward gave, or what went wrong."""
        if reward.isolate:
            task = asyncio.ensure_future(self._call_process(reward, trajectory))
            limit = None
        elif inspect.iscoroutinefunction(reward.function):
            task = asyncio.ensure_future(reward.function(trajectory, **reward.kwargs))
            limit = self.timeout
        else:
            task = asyncio.ensure_future(asyncio.to_thread(reward.function, trajectory, **reward.kwargs))
            limit = self.timeout
        try:
            done, _ = await asyncio.wait({task}, timeout=limit)
        finally:
            task.cancel()
        if not done or task.cancelled():
            return f"no score within {self.timeout:g} s"
        error = task.exception()
        if error is not None:
            return str(error) if reward.isolate else f"{type(error).__name__}: {error}"
        return _checked(task.result(), len(trajectory.turns))

    async def _call_process(self, reward: Reward, trajectory: Trajectory) -> Any:
        idle = self._idle.get(reward.name)
        if idle is None:
            idle = self._idle[reward.name] = asyncio.Queue()
            for process in self._processes[reward.name]:
                idle.put_nowait(process)
        process = await idle.get()
        call = asyncio.ensure_future(asyncio.to_thread(process.call, trajectory, self.timeout))
        call.add_done_callback(lambda _: idle.put_nowait(process))
        return await asyncio.shield(call)


def load_rewards(
    names: Sequence[str],
    weights: Sequence[float],
    kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    timeout: float = 30.0,
    num_processes: int = 1,
) -> RewardSet:
    """Find the rewards that a configuration names.

    Args:
        names: Registered names, `package.module:function` or `path/file.py:function`.
        weights: A weight for each.
        kwargs: Keyword arguments by name.
        timeout: Deadline of one call, seconds.
        num_processes: Processes for each reward that runs in its own.

    Returns:
        The rewards; processes start on first use.

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
        if name not in names:
            raise RewardError(unknown_name("rl_config.verifier_kwargs", name, names))
    rewards = [_load(name, weight, dict(kwargs.get(name, {}))) for name, weight in zip(names, weights, strict=True)]
    return RewardSet(rewards, timeout, num_processes)


def _load(name: str, weight: float, kwargs: dict[str, Any]) -> Reward:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RewardError(f"rl_config.verifier_weight: must be a number, got {weight!r} for '{name}'. Set 1.0.")
    if ":" in name:
        function, target, isolate = _import(name), name, True
    elif name in REWARDS:
        function, isolate = REWARDS[name], name not in _QUICK
        target = f"{function.__module__}:{function.__name__}"
    else:
        advice = " Or give `package.module:function` or `path/file.py:function`."
        raise RewardError(unknown_name("rl_config.verifier_function", name, REWARDS) + advice)
    _check_kwargs(name, function, kwargs)
    return Reward(name, float(weight), function, kwargs, target, isolate and not inspect.iscoroutinefunction(function))


def _import(name: str) -> RewardFunction:
    where = f"rl_config.verifier_function: '{name}'"
    try:
        function = import_target(name)
    except Exception as error:  # the user's file may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise RewardError(f"{where} does not import: {reason}. Check the path, the name and the file.") from error
    if not callable(function):
        raise RewardError(f"{where} is not a function, got {type(function).__name__}.")
    return function


def _check_kwargs(name: str, function: RewardFunction, kwargs: dict[str, Any]) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters[1:]]
    for key in kwargs:
        if key not in known:
            raise RewardError(unknown_name(f"rl_config.verifier_kwargs.{name}", key, known))


def _checked(value: Any, num_turns: int) -> _Outcome | str:
    """The numbers of a returned value, or what is wrong with it."""
    numbers = dict(value) if isinstance(value, dict) else {"score": value}
    turn_scores = numbers.pop("turn_scores", [])
    if "score" not in numbers:
        return f"returned a dict without 'score', with {', '.join(map(str, numbers)) or 'nothing'}"
    if not isinstance(turn_scores, list) or len(turn_scores) not in (0, num_turns):
        return f"returned {turn_scores!r} as turn_scores, not a list with a number for each of the {num_turns} turns"
    for key, number in [*numbers.items(), *(("turn_scores", number) for number in turn_scores)]:
        if not isinstance(number, int | float) or not abs(number) <= _LARGEST:
            return f"returned {number!r} as {key}, not a finite number"
    score = float(numbers.pop("score"))
    metrics = {str(key): float(number) for key, number in numbers.items()}
    return _Outcome(score, metrics, [float(number) for number in turn_scores])
