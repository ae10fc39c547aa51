"""What clients send about groups and their rollouts, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from rl.errors import first_problem, unknown_name
from rl.rewards.outcome import Outcome, read_outcome
from rl.serving.errors import ApiError, bad_request
from rl.types import Message

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:-]+$")]


@dataclass(slots=True)
class GroupRequest:
    """`POST /v1/groups`. A field that is None was not given."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    """A question, short for one user message."""
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    ground_truth: str = ""
    data_source: str = "service"
    columns: dict[str, Any] = field(default_factory=dict)
    """Further values for reward functions."""
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rollouts; by default `rl_config.n_samples_per_prompt`."""
    id: _Name | None = None
    """Your name of the group, for example of the dataset's row. A second group of the same name is refused."""

    @property
    def all_messages(self) -> list[Message]:
        """The prompt as messages; empty where the agent alone knows it."""
        if self.messages is not None:
            return self.messages
        return [{"role": "user", "content": self.prompt}] if self.prompt is not None else []


@dataclass(slots=True)
class RewardRequest:
    """`POST /rollouts/ID/reward`."""

    reward: float | dict[str, Any]
    """A number, or named ones with `score` among them."""
    turn_scores: list[float] | None = None
    """A number for each answer, in the order of the requests."""
    completions: dict[str, float | list[float]] | None = None
    """Numbers by the `id` of a completion, instead of `turn_scores`; a list where it had several choices. Answers that
    are not named have 0."""

    def outcome(self, num_turns: int, turns_of: Mapping[str, list[int]]) -> Outcome:
        """The reward as reward functions return it.

        Args:
            num_turns: Answers that the client got.
            turns_of: Numbers of the turns of each completion.

        Raises:
            ApiError: A number is missing or not finite, or there is no such completion.
        """
        value: dict[str, Any] = dict(self.reward) if isinstance(self.reward, dict) else {"score": self.reward}
        scores = self.turn_scores
        if self.completions is not None:
            if scores is not None:
                raise bad_request("completions", "got turn_scores too. Give one of them.")
            scores = _placed(self.completions, num_turns, turns_of)
        if scores is not None:
            value["turn_scores"] = scores
        outcome = read_outcome(value, num_turns)
        if isinstance(outcome, str):
            raise bad_request("reward", f"{outcome.removeprefix('returned ')}. Send a finite number.")
        return outcome


def read_group_request(given: Mapping[str, Any]) -> GroupRequest:
    """Read the body of `POST /v1/groups`.

    Raises:
        ApiError: A key is unknown or wrong; names it.
    """
    request = _read(_GROUP, given, GroupRequest)
    if request.prompt is not None and request.messages is not None:
        raise bad_request("messages", "got prompt too. Give one of them.")
    return request


def read_reward_request(given: Mapping[str, Any]) -> RewardRequest:
    """Read the body of `POST /rollouts/ID/reward`.

    Raises:
        ApiError: A key is unknown or wrong; names it.
    """
    return _read(_REWARD, given, RewardRequest)


_GROUP, _REWARD = TypeAdapter(GroupRequest), TypeAdapter(RewardRequest)


def _read(adapter: TypeAdapter[Any], given: Mapping[str, Any], kind: type) -> Any:
    known = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for key in given:
        if key not in known:
            raise ApiError(400, unknown_name("request", key, known), param=key)
    try:
        return adapter.validate_python(dict(given))
    except ValidationError as error:
        param = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else None
        raise ApiError(400, f"{first_problem(error)}.", param=param) from None


def _placed(given: Mapping[str, float | list[float]], num_turns: int, turns_of: Mapping[str, list[int]]) -> list[float]:
    scores = [0.0] * num_turns
    for name, value in given.items():
        if name not in turns_of:
            raise bad_request("completions", unknown_name("completion", name, list(turns_of)))
        turns, values = turns_of[name], value if isinstance(value, list) else [value] * len(turns_of[name])
        if len(values) != len(turns):
            raise bad_request("completions", f"{name} has {len(turns)} choices, got {len(values)} numbers.")
        for turn, score in zip(turns, values, strict=True):
            scores[turn] = score
    return scores
