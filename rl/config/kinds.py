"""Types of the keys of `rl.config.schema`: choices, bounded numbers, paths; and how sections are checked.

Bounds are wide: no sensible run leaves them. Types that several keys share have a name here; a key with its own range
says it in place: `key: int = Field(default=0, ge=0, le=100)`.
"""

from __future__ import annotations

import os
import re
from enum import Enum, StrEnum
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
"""Text is not a number, 1 is not true, NaN is refused; the string below a key is its meaning."""


class Section:
    """Base of all sections: keys are strict, but a section may be a mapping."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Strict validation accepts only instances of a dataclass."""
        return _lenient(source, handler)


class Choice(StrEnum):
    """Base of all enumerations: a member may be text, in upper or lower case."""

    @classmethod
    def _missing_(cls, value: object) -> Choice | None:
        return next((member for member in cls if isinstance(value, str) and member.value == value.lower()), None)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Strict validation accepts only members of an enumeration."""
        return _lenient(source, handler)


class Device(Choice):
    """Where models run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ResumeMode(Choice):
    """Where a run continues from."""

    AUTO = "auto"
    PATH = "path"
    NEVER = "never"


class TrackerName(Choice):
    """Where metrics can go besides metrics.jsonl."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"
    SWANLAB = "swanlab"
    TRACKIO = "trackio"


class LrDecayStyle(Choice):
    """Learning-rate schedules of Megatron-Core."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class TruncateSide(Choice):
    """Which part of an over-long tool result to keep."""

    LEFT = "left"
    RIGHT = "right"
    MIDDLE = "middle"


class KlPenalty(Choice):
    """Estimators of the divergence from the reference (http://joschu.net/blog/kl-approx.html)."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    LOW_VAR_KL = "low_var_kl"


class KlControl(Choice):
    """How the weight of the KL term changes over the run."""

    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class StalenessStrategy(Choice):
    """What to do with a group that becomes too old before it is complete."""

    WAIT = "wait"
    DROP = "drop"


class LossAggregation(Choice):
    """How the losses of tokens become one; the names are verl's, the formulas in `rl.algorithms.aggregation`."""

    TOKEN_MEAN = "token-mean"
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"
    SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"


class ImportanceLevel(Choice):
    """What an importance weight is the ratio of."""

    TOKEN = "token"
    SEQUENCE = "sequence"


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Steps = Annotated[int, Field(ge=1, le=100_000_000)]
StepsOrZero = Annotated[int, Field(ge=0, le=100_000_000)]
Ranks = Annotated[int, Field(ge=1, le=10_000)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
TokensOrZero = Annotated[int, Field(ge=0, le=10_000_000)]
TopK = Annotated[int, Field(ge=-1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Weight = Annotated[float, Field(ge=0, le=1000)]
SignedWeight = Annotated[float, Field(ge=-1_000_000, le=1_000_000)]
Bound = Annotated[float, Field(gt=0, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, le=0.999999)]


class Place(Enum):
    """Where a relative path is looked for; see `rl.config.paths`."""

    INPUT = "read"
    OUTPUT = "written"
    CODE = "imported"


_NUMBER = re.compile(r"[-+.]*(\d[\d_.]*(e[-+]?\d+)?|inf|nan)", re.IGNORECASE)


def _path(value: str) -> str:
    """Refuse what cannot be a path: a number, or text that the file system refuses."""
    if _NUMBER.fullmatch(value):
        raise ValueError(f"must be a path, got '{value}'. Write ./{value} where a file or folder has that name.")
    if value and (reason := _unreachable(value)):
        raise ValueError(f"cannot be a path here ({reason}), got '{value:.60}'. Correct it.")
    return value


def _unreachable(path: str) -> str | None:
    """Why the file system refuses to look a path up; a path where nothing is yet is fine."""
    try:
        os.stat(os.path.expanduser(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        return failure.strerror
    except ValueError as failure:  # a null character, a lone surrogate
        return str(failure)
    return None


def _sets(value: Any) -> Any:
    """Name a single path after its file, and check the names of several."""
    if isinstance(value, str):
        return {PurePath(value).stem: value} if value else {}
    for name in value if isinstance(value, dict) else ():
        if not name or "/" in name or (name == "all" and len(value) > 1):
            raise ValueError(
                f"a set cannot be named '{name}', because metrics are named after sets and `all` is all of them. "
                "Choose another name, without a slash."
            )
    return value


InputPath = Annotated[str, AfterValidator(_path), Place.INPUT]
"""Path of a file or folder that is read."""
EvaluationSets = Annotated[dict[str, InputPath], BeforeValidator(_sets), Place.INPUT]
"""Files that are read, by the names of evaluation sets."""
OutputPath = Annotated[str, AfterValidator(_path), Place.OUTPUT]
"""Path of a file or folder that is written."""
CodeName = Annotated[str, Place.CODE]
"""A name that the project knows, `package.module:name`, or `path/file.py:name`."""


def _lenient(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    schema = handler(source)
    handler.resolve_ref_schema(schema)["strict"] = False  # type: ignore[index]
    return schema
