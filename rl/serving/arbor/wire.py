"""What Arbor's clients send, in all shapes, read and checked.

Clients of dspy 2.6 and 3.0.0 to 3.0.3 send flat bodies to `initialize`; later ones nest the settings. Those of 2.6 know
no job id. The shape of `initialize` tells whether a client asks for batch ids.

Source: `dspy/clients/lm_local_arbor.py` of dspy 2.6.27 and 3.0.4; `arbor/integrations/dspy` of arbor-ai 0.2.17.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rl.errors import first_problem, unknown_name
from rl.serving.errors import ApiError, bad_request
from rl.serving.service import NATIVE
from rl.types import Message

_SECTIONS = ("trainer_config", "inference_config", "gpu_config")
_FINITE = ConfigDict(allow_inf_nan=False)
_LARGEST_REWARD = 1e18
CheckpointName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:-]*$")]
_SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,100}")
_T = TypeVar("_T")


@dataclass(slots=True, frozen=True)
class InitializeRequest:
    """`POST fine_tuning/grpo/initialize`."""

    model: str
    suffix: str
    """Names the training."""
    train_kwargs: dict[str, Any]
    """The settings of all sections, without those that are null."""
    asks_for_ids: bool
    """The client waits until it is offered batch ids."""
    describes_checkpoints: bool
    """The client wants a JSON object for each checkpoint, not its path."""


@dataclass(slots=True)
class Sample:
    """One call of a predictor, as the client renders it, with the reward of its program."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    completion: Message
    reward: Annotated[float, Field(ge=-_LARGEST_REWARD, le=_LARGEST_REWARD, strict=True)]
    __pydantic_config__ = _FINITE

    @property
    def text(self) -> str:
        """The completion."""
        return text_of(self.completion)


@dataclass(slots=True)
class StepRequest:
    """`POST fine_tuning/grpo/step`: one group."""

    batch: Annotated[list[Sample], Field(min_length=1, max_length=4096)]
    job_id: str | None = None
    batch_id: int | None = None
    model: str | None = None
    update_inference_model: bool | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    """Scores of the client's validation, for its log."""
    __pydantic_config__ = _FINITE


@dataclass(slots=True)
class JobRequest:
    """Bodies that name a job at most."""

    job_id: str | None = None
    __pydantic_config__ = _FINITE


@dataclass(slots=True)
class CheckpointRequest:
    """`POST fine_tuning/grpo/checkpoint`."""

    checkpoint_name: CheckpointName
    job_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__ = _FINITE


def text_of(message: Message) -> str:
    """The text of a message, whose content may be in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def read_initialize(given: Mapping[str, Any]) -> InitializeRequest:
    """Read the body of `initialize`, flat or nested.

    Raises:
        ApiError: A section is no object, two sections contradict each other, the model is missing, or the suffix cannot
            name a training.
    """
    is_nested = "trainer_config" in given
    settings = {key: value for key, value in given.items() if key not in ("model", "suffix", *_SECTIONS)}
    if is_nested and settings:
        known = ["model", "suffix", *_SECTIONS]
        raise ApiError(400, unknown_name("initialize", next(iter(settings)), known), param=next(iter(settings)))
    for section in _SECTIONS:
        _merge(settings, section, _object(section, given.get(section)))
    suffix = given.get("suffix") or "arbor"
    if not isinstance(suffix, str):
        raise bad_request("suffix", f"must be a text, got {suffix!r:.80}.")
    if not isinstance(given.get("model"), str) or not given["model"]:
        raise bad_request("model", f"must be the served model's name, got {given.get('model')!r:.80}.")
    if not _SUFFIX.fullmatch(suffix) or suffix == NATIVE:
        raise bad_request(
            "suffix",
            f"names the run directory: at most 100 letters, digits, '-', '_' and '.', and not '{NATIVE}', got "
            f"'{suffix:.80}'.",
        )
    inference = given.get("inference_config") or {}
    return InitializeRequest(given["model"], suffix, settings, is_nested, "max_seq_len" in inference)


def read_step(given: Mapping[str, Any]) -> StepRequest:
    """Read the body of `step`.

    Raises:
        ApiError: A key is unknown or wrong, the group is empty, or a reward is not a finite number.
    """
    if given.get("batch") == []:
        raise bad_request("batch", "the group is empty, so there is nothing to train on. Leave the step out.")
    request = _read(_STEP, given, StepRequest)
    for number, sample in enumerate(request.batch):
        if not isinstance(sample.completion.get("content"), str | list):
            raise bad_request("batch", f"[{number}].completion.content must be a text.")
        if any(not isinstance(message.get("role"), str) for message in sample.messages):
            raise bad_request("batch", f"[{number}].messages: each must have a role.")
    return request


def read_job(given: Mapping[str, Any]) -> JobRequest:
    """Read the body of `status`, `update_model`, `terminate` or `cancel`.

    Raises:
        ApiError: A key is unknown or wrong.
    """
    return _read(_JOB, given, JobRequest)


def read_checkpoint(given: Mapping[str, Any]) -> CheckpointRequest:
    """Read the body of `checkpoint`.

    Raises:
        ApiError: A key is unknown or wrong, or the name is not one of a folder.
    """
    return _read(_CHECKPOINT, given, CheckpointRequest)


_STEP, _JOB, _CHECKPOINT = TypeAdapter(StepRequest), TypeAdapter(JobRequest), TypeAdapter(CheckpointRequest)


def _read(adapter: TypeAdapter[_T], given: Mapping[str, Any], kind: type) -> _T:
    known = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for key in given:
        if key not in known:
            raise ApiError(400, unknown_name("request", key, known), param=key)
    try:
        return adapter.validate_python({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        raise ApiError(400, f"{first_problem(error)}.", param=str(place[0]) if place else None) from None


def _object(section: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise bad_request(section, f"must be a JSON object, got {value!r:.80}.")
    given = dict(value)
    if section == "inference_config":
        given.pop("model", None)  # the same one again
    if section == "gpu_config":
        kind = given.pop("type", None)
        given = {**_object("gpu_config.multi", given.pop("multi", None)), **given}
        if kind not in (None, "single", "multi"):
            raise bad_request("gpu_config", f"type must be single or multi, got {kind!r:.80}.")
    return given


def _merge(settings: dict[str, Any], section: str, given: Mapping[str, Any]) -> None:
    """Add a section's settings; null is not given."""
    for key, value in given.items():
        if value is None:
            continue
        if settings.get(key, value) != value:
            raise bad_request(key, f"two sections differ, got {settings[key]!r:.40} and {value!r:.40} ({section}).")
        settings[key] = value
