"""What all requests for completions share: how many there are, and how they are sampled."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from rl.rollout.dialog import Dialog
from rl.rollout.rollout_function import Policy, Reply
from rl.types import Message, Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
}
"""Keys that are accepted with these values alone, which have no effect."""

WITHOUT_EFFECT = frozenset(
    (
        "cache_salt",
        "metadata",
        "priority",
        "prompt_cache_key",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    )
)
"""Keys that never change what is sampled."""

StopString = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


@dataclass(slots=True)
class StreamOptions:
    """`stream_options` of a request."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


@dataclass(slots=True, kw_only=True)
class SampleRequest:
    """A request for completions. A field that is None was not given."""

    prompt_key: ClassVar[str] = "prompt"
    """The field that is wrong if the context is too long."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: StopString | list[StopString] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    return_token_ids: bool = False

    @property
    def limit(self) -> int | None:
        """Tokens of a completion; None: the run's limit."""
        return self.max_tokens

    @property
    def num_completions(self) -> int:
        """Completions that it asks for."""
        return self.n

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is shown."""
        return []

    def conversation(self, number: int) -> list[Message]:
        """What a completion follows, as messages; a text is one of the user, token ids are an empty one.

        Args:
            number: Number of the completion, from 0.
        """
        raise NotImplementedError

    def sampling(self, own: Sampling) -> Sampling:
        """The sampling that it asks for.

        Args:
            own: The run's, for what it leaves open.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            temperature=own.temperature if self.temperature is None else self.temperature,
            max_tokens=self.limit or own.max_tokens,
            top_p=own.top_p if self.top_p is None else self.top_p,
            top_k=own.top_k if self.top_k is None else self.top_k or -1,
            min_p=own.min_p if self.min_p is None else self.min_p,
            stop=own.stop + stop,
            seed=own.seed if self.seed is None else self.seed,
        )

    def ask(self, number: int, policy: Policy, own: Sampling, dialog: Dialog) -> Coroutine[Any, Any, Reply]:
        """Sample one of the completions.

        Args:
            number: Number of the completion, from 0.
            policy: Samples it.
            own: The run's sampling.
            dialog: Renderer and parser of `offered_tools`.
        """
        raise NotImplementedError
