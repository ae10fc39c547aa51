"""Reward functions written for verl or TRL, called on a trajectory.

    verl: compute_score(data_source, solution_str, ground_truth, extra_info, **reward_kwargs) -> float or dict
    TRL:  reward(prompts, completions, **columns) -> list with a score, or None, for each completion

Both frameworks pass everything by name. Sources: `verl/experimental/reward_loop/reward_manager/naive.py` of verl 0.9,
`GRPOTrainer._calculate_rewards` of TRL 1.12. Neither package is imported.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from rl.config.imports import split_convention
from rl.errors import RewardError, unknown_name
from rl.rewards.answers import without_special_tokens
from rl.rewards.outcome import Outcome, as_list
from rl.types import Message, Prompt, Trajectory

RewardFunction = Callable[..., Any]
"""`reward(trajectory, **kwargs)`, plain or async, returning a number or a dict with `score`, numbers and texts.

The dict may contain `turn_scores`, a list with a number per turn, for `rl_config.turn_credit_coef`."""

_VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
_TRL = ("prompts", "completions", "log_extra", "log_metric")
_NOT_GIVEN = {
    "completion_ids": "rewards get no token ids; use `completions`",
    "trainer_state": "there is no TrainerState",
    "environments": "an environment gives its own reward; see docs/environments.md",
}
"""Arguments of TRL that do not exist here."""
_NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not pass on."""


def convention_of(name: str, function: RewardFunction) -> str:
    """Find the convention of a reward function: the prefix of its name, or what its parameters are called.

    Args:
        name: As in `rl_config.verifier_function`, such as `verl:my_rewards.py:compute_score`.
        function: The function, adapted or not.

    Returns:
        `verl`, `trl`, `trl_text`, or an empty text for `reward(trajectory, **kwargs)`.
    """
    prefix, _ = split_convention(name)
    if prefix:
        return prefix
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return ""  # functions in C may have no signature
    if "solution_str" in parameters:
        return "verl"
    return "trl" if {"completions", "completion_ids"} & set(parameters) else ""


def adapt(name: str, function: RewardFunction) -> RewardFunction:
    """Make a function of any convention callable as `reward(trajectory, **kwargs)`.

    Args:
        name: See `convention_of`.
        function: The function that the name stands for.

    Returns:
        The function itself, or one with its signature that calls it and is async if it is.
    """
    convention = convention_of(name, function)
    if not convention:
        return function
    accepts = _accepted(function)

    def arguments(trajectory: Trajectory, logged: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = _verl_arguments(trajectory) if convention == "verl" else _trl_arguments(trajectory, convention, logged)
        return {key: value for key, value in (given | kwargs).items() if accepts is None or key in accepts}

    def read(value: Any, logged: dict[str, Any]) -> Any:
        return value if convention == "verl" else _read_trl(value, logged)

    @functools.wraps(function)
    def plain(trajectory: Trajectory, **kwargs: Any) -> Any:
        logged: dict[str, Any] = {}
        with _Hint(convention, name):
            value = function(**arguments(trajectory, logged, kwargs))
        return read(value, logged)

    @functools.wraps(function)
    async def coroutine(trajectory: Trajectory, **kwargs: Any) -> Any:
        logged: dict[str, Any] = {}
        with _Hint(convention, name):
            value = await function(**arguments(trajectory, logged, kwargs))
        return read(value, logged)

    return coroutine if is_async(function) else plain


def is_async(function: RewardFunction) -> bool:
    """Whether a reward function must be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_arguments(name: str, function: RewardFunction, kwargs: Mapping[str, Any]) -> None:
    """Check that a function of verl's or TRL's convention can be called with these keyword arguments.

    Raises:
        RewardError: An argument is unknown, or a parameter will have no value.
    """
    accepts, convention = _accepted(function), convention_of(name, function)
    given = _VERL if convention == "verl" else _TRL
    for key in kwargs:
        if accepts is not None and key not in accepts:
            known = [parameter for parameter in accepts if parameter not in given]
            raise RewardError(unknown_name(f"rl_config.verifier_kwargs.{name}", key, known))
    for key in _required(function):
        if key in kwargs or key in given:
            continue
        if convention == "verl" or key in _NOT_GIVEN:
            reason = _NOT_GIVEN.get(key, f"verl's convention has {', '.join(_VERL)}")
            raise RewardError(
                f"rl_config.verifier_function: '{name}' needs the argument '{key}', which is not given: {reason}. Give "
                "it a default, or a value in rl_config.verifier_kwargs."
            )


def missing_column(name: str, function: RewardFunction, kwargs: Mapping[str, Any], prompt: Prompt) -> str | None:
    """Name the first column that a function of TRL's convention needs and a row does not have; None if it has all."""
    if not convention_of(name, function).startswith("trl"):
        return None
    known = {*_TRL, *kwargs, *_columns(prompt)}
    return next((key for key in _required(function) if key not in known), None)


def _accepted(function: RewardFunction) -> list[str] | None:
    """Names of the parameters; None if it accepts all keyword arguments."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def _required(function: RewardFunction) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


class _Hint:
    """Explains the usual mistake with TRL's two forms of completions."""

    def __init__(self, convention: str, name: str) -> None:
        self._convention, self._name = convention, name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self._convention == "trl" and isinstance(error, TypeError | AttributeError) and "list" in str(error):
            name = self._name.removeprefix("trl:")
            hint = f"Completions are lists of messages here; a function that reads text is named trl_text:{name}"
            raise type(error)(f"{error}. {hint}") from error


def _verl_arguments(trajectory: Trajectory) -> dict[str, Any]:
    prompt, record = trajectory.prompt, trajectory.prompt.extra.get("reward_model")
    in_row = record.get("ground_truth") if isinstance(record, Mapping) else None
    extra_info = prompt.extra.get("extra_info")
    results = [result for turn in trajectory.turns for result in turn.results]
    num_answered = sum(bool(turn.results or turn.messages) for turn in trajectory.turns)
    return {
        "data_source": prompt.data_source,
        "solution_str": "\n".join(str(message["content"]) for message in _response(trajectory)),
        "ground_truth": prompt.ground_truth if in_row is None else in_row,
        "extra_info": {
            **(extra_info if isinstance(extra_info, Mapping) else {}),
            "num_turns": 1 + len(trajectory.turns) + num_answered,
            "rollout_reward_scores": {r.name: r.metrics["calc_reward"] for r in results if "calc_reward" in r.metrics},
        },
    }


def _trl_arguments(trajectory: Trajectory, convention: str, logged: dict[str, Any]) -> dict[str, Any]:
    """TRL's arguments for one completion. What the function logs goes to `logged`."""
    prompt: Any = trajectory.prompt.messages
    completion: Any = _response(trajectory)
    if convention == "trl_text":
        prompt, completion = ("\n".join(str(m["content"]) for m in messages) for messages in (prompt, completion))
    return {
        **{name: [value] for name, value in _columns(trajectory.prompt).items()},
        "prompts": [prompt],
        "completions": [completion],
        "log_extra": lambda column, values: logged.update({column: values[0]}),
        "log_metric": lambda name, value: logged.update({name: value}),
    }


def _columns(prompt: Prompt) -> dict[str, Any]:
    columns = {"ground_truth": prompt.ground_truth, "data_source": prompt.data_source, **prompt.extra}
    return {name: value for name, value in columns.items() if name not in _NOT_COLUMNS}


def _response(trajectory: Trajectory) -> list[Message]:
    """Everything after the prompt as messages: turns without special tokens, and what answered them."""
    messages: list[Message] = []
    for turn in trajectory.turns:
        message: Message = {"role": "assistant", "content": without_special_tokens(turn.text)}
        calls = [{"name": call.name, "arguments": call.arguments} for call in turn.calls if call.error is None]
        if calls:
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        results: list[Message] = [{"role": "tool", "name": r.name, "content": r.text} for r in turn.results]
        messages += [message, *results, *turn.messages]
    return messages or [{"role": "assistant", "content": ""}]


def _read_trl(value: Any, logged: dict[str, Any]) -> Any:
    """Take the score of the one completion out of the list. None means that the reward does not apply."""
    scores = as_list(value)
    if scores is None or len(scores) != 1:
        raise ValueError(f"returned {value!r:.80}, not a list with a score for the one completion")
    return Outcome(math.nan) if scores[0] is None else {**logged, "score": scores[0]}
