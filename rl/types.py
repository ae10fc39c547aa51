"""The records of rollouts, in the order the data flows: prompt, turn, trajectory, group. Training: `rl.batches`.

A `TokenSequence` is token-aligned: index t belongs to token t. `logprobs[t]` is the log-probability of token t given
the tokens before it; `loss_mask[0]` is always 0, because nothing predicts the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
NOT_SAMPLED = -1
"""Policy version of a token that the model did not sample."""

Message = dict[str, Any]
"""One chat message in OpenAI's form: `role`, `content`, and for an assistant optionally `tool_calls`."""


class StopReason(StrEnum):
    """Why a trajectory ended. Every trajectory has one."""

    FINISHED = "finished"
    """The model ended a turn that calls no tool."""
    LENGTH = "length"
    """The token budget ended in the middle of a turn."""
    TOOL_LIMIT = "tool_limit"
    """The model called a tool again in the final turn it was given to answer."""
    TOOL_STOP = "tool_stop"
    """A tool ended the trajectory."""
    TOOL_UNAVAILABLE = "tool_unavailable"
    """A tool's service did not answer, after retries."""
    DEADLINE = "deadline"
    """The trajectory's own deadline passed."""
    ENGINE_FAILED = "engine_failed"
    """The engine died and the trajectory could not be run elsewhere."""
    ENVIRONMENT_FAILED = "environment_failed"
    """The user's environment or rollout function raised, or returned something wrong."""


INFRASTRUCTURE_FAILURES = frozenset(
    {StopReason.DEADLINE, StopReason.ENGINE_FAILED, StopReason.ENVIRONMENT_FAILED, StopReason.TOOL_UNAVAILABLE}
)
"""Stop reasons that say nothing about the model. Such a trajectory is not scored, so training masks it out."""


class ToolStatus(StrEnum):
    """Outcome of one tool call."""

    OK = "ok"
    ERROR = "error"
    """The tool ran and failed: it raised, or the code exited with an error."""
    PARSE_ERROR = "parse_error"
    IN_THOUGHT = "in_thought"
    """The call is in an unclosed thought; not executed."""
    UNKNOWN_TOOL = "unknown_tool"
    INVALID_ARGUMENTS = "invalid_arguments"
    OVER_LIMIT = "over_limit"
    """More calls than `max_parallel_calls` in the turn, or than `max_tool_calls` in the trajectory; not executed."""
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    """The tool's service failed, after retries: the infrastructure's fault, not the model's."""


@dataclass(slots=True, frozen=True)
class Prompt:
    """One dataset row."""

    id: str
    """Unique and stable across runs: name of the evaluation set, or in training the data file's stem, and row number,
    with `@<epoch>` from the second epoch on."""
    messages: list[Message]
    ground_truth: str
    data_source: str
    extra: dict[str, Any] = field(default_factory=dict)
    """The remaining columns of the row, for rewards."""
    evaluation_set: str | None = None
    """Name of the evaluation set that the row belongs to; None in training."""


@dataclass(slots=True, frozen=True)
class ToolCall:
    """One call parsed from a turn, or the error in its place."""

    name: str
    arguments: dict[str, Any]
    raw: str = ""
    """The text as generated, without the tags around it."""
    error: str | None = None
    """Set when the call could not be parsed; `name` and `arguments` are then empty or partial."""
    is_in_thought: bool = False
    """The call is in an unclosed thought; `error` says so."""
    lacks_end: bool = False
    """The closing tag is missing. This matters only if the model ended the turn itself."""


@dataclass(slots=True)
class ToolResult:
    """The answer to one call, as the model sees it, with its timing."""

    name: str
    text: str
    status: ToolStatus
    is_truncated: bool = False
    queue_s: float = 0.0
    """All other time of the call: waiting for a worker, for the service, between attempts."""
    run_s: float = 0.0
    """Time in the tool itself, including failed attempts."""
    reward: float | None = None
    """A reward for the turn that made the call."""
    stop: bool = False
    """The tool ends the trajectory."""
    metrics: dict[str, float] = field(default_factory=dict)
    num_failed_attempts: int = 0
    """Attempts that failed because of the service. Each was retried, except the last of an unavailable call."""
    outage_s: float = 0.0
    """Seconds from the first such failure to the call's end; 0 without one."""
    met_open_breaker: bool = False
    """The tool's circuit breaker was open when an attempt began: it was delayed, or sent as the probe."""
    has_abandoned_thread: bool = False
    """A plain function missed its deadline and still runs in a thread that nobody waits for."""
    has_abandoned_coroutine: bool = False
    """A coroutine did not end within a second of its cancellation and runs until it is closed."""
    blocked_s: float = 0.0
    """Seconds that the tool's coroutines blocked the event loop, and so all trajectories, since its last result."""
    start_s: float = 0.0
    """When the call began, seconds since the trajectory's `started_at`."""


class TokenSequence:
    """Token ids with a mask of sampled tokens. Grows only by `append_sampled` and `append_context`.

    No token changes; `drop_sampled` takes the mask from tokens that nobody got.

    Example: prompt [1, 5, 9], the model samples [7, 2], the tool answers [1, 6], the model samples [8]:

        token_ids  1 5 9 7 2 1 6 8
        loss_mask  0 0 0 1 1 0 0 1
    """

    token_ids: IntArray
    """[L] int32."""
    loss_mask: NDArray[np.uint8]
    """[L] uint8, 1 on sampled tokens."""
    logprobs: FloatArray
    """[L] float32, the engine's log-probs of sampled tokens, 0 elsewhere."""
    versions: IntArray
    """[L] int32, the `policy_version` that sampled each token, -1 elsewhere."""
    prompt_length: int
    results_length: int
    """Prompt tokens that belong to the response: the previous turn's results, if history was rewritten."""

    def __init__(self, prompt_ids: Sequence[int], *, results_length: int = 0) -> None:
        self.token_ids = np.array(prompt_ids, np.int32)
        self.prompt_length, self.results_length = len(prompt_ids), results_length
        self.loss_mask = np.zeros(self.prompt_length, np.uint8)
        self.logprobs = np.zeros(self.prompt_length, np.float32)
        self.versions = np.full(self.prompt_length, NOT_SAMPLED, np.int32)

    def append_sampled(self, token_ids: Sequence[int], logprobs: Sequence[float], policy_version: int) -> None:
        """Append tokens the engine sampled, exactly as sampled (mask 1)."""
        assert len(token_ids) == len(logprobs), "one log-prob for each sampled token"
        self._append(token_ids, 1, logprobs, policy_version)

    def append_context(self, token_ids: Sequence[int]) -> None:
        """Append unsampled tokens: tool results, headers, a forced closing token (mask 0)."""
        self._append(token_ids, 0, [0.0] * len(token_ids), NOT_SAMPLED)

    def drop_sampled(self, start: int) -> None:
        """Make all tokens from a place on context: they are not trained on."""
        self.loss_mask[start:], self.logprobs[start:], self.versions[start:] = 0, 0.0, NOT_SAMPLED

    def _append(self, token_ids: Sequence[int], mask: int, logprobs: Sequence[float], version: int) -> None:
        num = len(token_ids)
        self.token_ids = np.concatenate([self.token_ids, np.asarray(token_ids, np.int32)])
        self.loss_mask = np.concatenate([self.loss_mask, np.full(num, mask, np.uint8)])
        self.logprobs = np.concatenate([self.logprobs, np.asarray(logprobs, np.float32)])
        self.versions = np.concatenate([self.versions, np.full(num, version, np.int32)])

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def response_length(self) -> int:
        """Tokens after the prompt, sampled or not, plus `results_length`."""
        return len(self.token_ids) - self.prompt_length + self.results_length

    @property
    def num_sampled(self) -> int:
        """Tokens the model sampled."""
        return int(self.loss_mask.sum())


@dataclass(slots=True)
class Turn:
    """One generation and the tool results that answer it."""

    text: str
    """The generated text, special tokens included, decoded only for parsing, rewards and display."""
    num_tokens: int
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    generate_s: float = 0.0
    tool_s: float = 0.0
    begins_in_thought: bool = False
    """The chat template's header opened a thought, so the text begins inside it."""
    is_cut: bool = False
    """The token budget ended the turn, not the model."""
    is_last: bool = False
    """The limits allow no further turn."""
    is_trained: bool = True
    """Its tokens were sampled as training assumes, and the caller got them. An agent may ask for another temperature or
    top_p, or leave before the answer; such tokens are context."""
    messages: list[Message] = field(default_factory=list)
    """The environment's messages, besides tool results."""
    start_s: float = 0.0
    """When its generation began, seconds since the trajectory's `started_at`."""
    sequence: int = 0
    """Number of the trajectory's sequence that holds its tokens."""
    asked: list[Message] = field(default_factory=list)
    """What a caller that leads the conversation itself said since the turn that it goes on from; without results of the
    run's tools, and without the data row's own messages."""
    checksum: int | None = None
    """CRC-32 of its tokens, int32, as the engine gave them; None: not known."""


class Start(StrEnum):
    """Why a token sequence began. All but the first broke the prefix of another one."""

    FIRST = "first"
    NEW_CONVERSATION = "new_conversation"
    """The messages have no user message in common with an earlier conversation: another agent, for example."""
    OTHER_TOOLS = "other_tools"
    """A known conversation, but the request offers other tools."""
    EDITED_HISTORY = "edited_history"
    """Messages of a known conversation were changed, left out or summarized, and it went on."""
    SECOND_CONTINUATION = "second_continuation"
    """Something else follows a turn that another conversation has gone on from."""
    REPEATED_REQUEST = "repeated_request"
    """The same messages again: a retry, or several choices."""
    TEMPLATE_REWRITES = "template_rewrites"
    """The chat template renders earlier turns in another way than they were sampled."""


@dataclass(slots=True, frozen=True)
class SequenceStart:
    """How a token sequence began."""

    why: Start
    branches_from: int | None = None
    """Number of the sequence whose first tokens it begins with, sampled turns among them; None: it copies none."""
    num_copied: int = 0
    """How many tokens."""


@dataclass(slots=True)
class Scores:
    """The reward functions' scores of one trajectory."""

    score: float | None = None
    """The weighted sum of the rewards; None if a reward failed, which masks the trajectory out."""
    rewards: dict[str, float] = field(default_factory=dict)
    """The score of each reward function under its name, and `<name>/<metric>` for the extra metrics it returned."""
    reward_texts: dict[str, str] = field(default_factory=dict)
    """`<name>/<key>`: values other than numbers that a reward function returned, for the viewer."""
    turn_rewards: list[float] = field(default_factory=list)
    """Weighted sum of the reward functions' scores for each turn; empty without any."""
    reward_error: str | None = None
    """Why there is no score."""


@dataclass(slots=True)
class Trajectory:
    """One prompt's turns up to a `StopReason`, its tokens and, after scoring, its rewards."""

    prompt: Prompt
    sample_index: int
    sequences: list[TokenSequence]
    """One, or several if the chat template rewrote history; empty in the copy for rewards and the viewer."""
    turns: list[Turn]
    stop_reason: StopReason
    score: float | None = None
    """This and the next four: see `Scores`."""
    rewards: dict[str, float] = field(default_factory=dict)
    reward_texts: dict[str, str] = field(default_factory=dict)
    turn_rewards: list[float] = field(default_factory=list)
    reward_error: str | None = None
    environment: dict[str, Any] | None = None
    """What the environment or rollout function returned, in the form of a reward function's result. The reward
    `environment` reads it. None without a result."""
    failure: str | None = None
    """With `StopReason.ENVIRONMENT_FAILED`: what user code raised."""
    wall_s: float = 0.0
    started_at: float = 0.0
    """Seconds since 1970, see `rl.observability.clock`."""
    reward_s: float = 0.0
    """Seconds of scoring, which follows the trajectory's end."""
    worker: int = 0
    """Number of the rollout worker."""
    starts: list[SequenceStart] = field(default_factory=list)
    """How each of `sequences` began."""
    prompt_length: int = 0
    """Tokens of the first prompt. This and the next three are computed from `sequences`, if any."""
    num_sampled: int = 0
    """Tokens the model sampled, over all sequences."""
    response_length: int = 0
    """Tokens sampled in all turns, and those between them (results, headers), each counted once.

    `max_total_response_length` limits it, `response_length/*` reports it, the overlong term penalizes it. If the chat
    template rewrites history, tokens that a later sequence repeats do not count again.
    """
    policy_versions: list[int] = field(default_factory=list)
    """Versions that sampled at least one token, in increasing order."""
    __pydantic_config__ = {"arbitrary_types_allowed": True}  # noqa: RUF012  read back by pydantic from checkpoints

    def __post_init__(self) -> None:
        if self.sequences:
            self.prompt_length = self.sequences[0].prompt_length
            self.num_sampled = sum(s.num_sampled for s in self.sequences)
            self.response_length = sum(s.response_length for s in self.sequences)
            found = np.unique(np.concatenate([s.versions for s in self.sequences]))
            self.policy_versions = [int(v) for v in found if v != NOT_SAMPLED]

    def without_tokens(self) -> Trajectory:
        """A copy without token ids, for rewards and records."""
        return replace(self, sequences=[])

    def take_scores(self, scores: Scores) -> None:
        """Store the scores."""
        self.score, self.rewards, self.reward_texts = scores.score, scores.rewards, scores.reward_texts
        self.turn_rewards, self.reward_error = scores.turn_rewards, scores.reward_error

    @property
    def id(self) -> str:
        """`<prompt id>/<sample index>`."""
        return f"{self.prompt.id}/{self.sample_index}"

    @property
    def num_tool_calls(self) -> int:
        """Calls of all turns, executed or not."""
        return sum(len(t.calls) for t in self.turns)

    @property
    def response_text(self) -> str:
        """Text of the last turn, where a verifier looks for the answer."""
        return self.turns[-1].text if self.turns else ""


@dataclass(slots=True)
class Group:
    """The `n_samples_per_prompt` trajectories of one prompt."""

    prompt: Prompt
    trajectories: list[Trajectory]


@dataclass(slots=True, frozen=True)
class Sampling:
    """Sampling parameters of one generation request."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    json_schema: str | None = None
    """JSON schema, as text, that the generated text must follow. A weight publish in the middle starts the turn
    anew."""
    structural_tag: str | None = None
    """Another form that the text must follow: an xgrammar structural tag as JSON. Not together with `json_schema`."""
    stop_token_ids: tuple[int, ...] = ()
    """Further tokens that end the generation."""


@dataclass(slots=True, frozen=True)
class BusySeconds:
    """How long a rollout worker was busy, within some interval."""

    engine_s: float
    """Its engine had a request."""
    reward_s: float
    """At least one trajectory was being scored."""


@dataclass(slots=True, frozen=True)
class Span:
    """One stretch of work in a step, for its timeline."""

    who: str
    """`driver`, or a worker and its number: `actor 0`, `reference 0`, `rollout 0`."""
    name: str
    start: float
    """Seconds since 1970, see `rl.observability.clock`."""
    end: float
    trajectory: str | None = None
    """Id of the trajectory that the work was for."""


class FinishReason(StrEnum):
    """Why the engine ended a generation."""

    STOP = "stop"
    """An end-of-turn token or a stop string was sampled; it is the last of `token_ids`."""
    LENGTH = "length"
    ABORT = "abort"
    """A weight publish interrupted it; resubmit prompt + partial ids."""


@dataclass(slots=True, frozen=True)
class Generation:
    """What the engine sampled for one request."""

    token_ids: list[int]
    logprobs: list[float]
    """Under the sampling distribution (temperature applied)."""
    finish_reason: FinishReason
    policy_version: int


@dataclass(slots=True, frozen=True)
class WeightUpdate:
    """A published set of weights: safetensors files in shared memory, tensors under their Hugging Face names."""

    version: int
    paths: tuple[str, ...]
    checksum: str | None = None
    """Over all tensors in order of name (see `rl.weight_sync.plan`); None: not verified."""
    nodes: tuple[str, ...] = ()
    """Ray node id of each file's machine."""
    num_bytes: tuple[int, ...] = ()
    """Size of each file."""
