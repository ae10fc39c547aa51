"""Fakes shared by tests: a scripted engine, tools that answer from a function, a word tokenizer, a virtual clock."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl.errors import RolloutError
from rl.types import FinishReason, Generation, Message, Sampling, ToolCall, ToolResult, ToolStatus, WeightUpdate

WORDS = {
    "<unk>": 0,
    "<user>": 1,
    "<end>": 2,
    "<assistant>": 3,
    "<tool>": 4,
    "what": 10,
    "think": 13,
    "answer": 14,
    "42": 15,
    "<tool_call>": 16,
    "</tool_call>": 17,
    '{"name":"add","arguments":{"a":1}}': 18,
    '{"name":"add","arguments":{"a":2}}': 19,
    "{oops}": 20,
    "one": 21,
    "two": 22,
    "three": 23,
    "...(truncated)...": 30,
}
"""Ids of `word_tokenizer`; every other word is 0."""

CALL_1, CALL_2, BAD_CALL = [16, 18, 17], [16, 19, 17], [16, 20, 17]
"""Tokens of a call of `add` with a=1, with a=2, and of one that is not JSON."""

_WORD_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
_FORGETFUL_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content.split('think')[-1] }}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def word_tokenizer(*, forgetful: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words. A message reads `<role> words <end>`; `<assistant>` opens a turn.

    Args:
        forgetful: The template drops the text before `think` in every message, as templates drop thoughts.
    """
    vocabulary = dict(WORDS)
    vocabulary.update({f"<unused{i}>": i for i in range(max(WORDS.values())) if i not in WORDS.values()})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    apart = pre_tokenizers.Split("...(truncated)...", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, pre_tokenizers.WhitespaceSplit()])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<user>", "<end>", "<assistant>", "<tool>")])
    template = _FORGETFUL_TEMPLATE if forgetful else _WORD_TEMPLATE
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)


@dataclass(slots=True, frozen=True)
class Request:
    """What a `ScriptedEngine` was asked."""

    token_ids: list[int]
    sampling: Sampling
    session_id: str


@dataclass
class ScriptedEngine:
    """An `Engine` that returns the generations of a script in order and records the requests.

    A generation longer than `max_tokens` is truncated, as in an engine. After the script the engine is dead, or hangs
    if `hangs`.
    """

    script: list[Generation]
    hangs: bool = False
    requests: list[Request] = field(default_factory=list)

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        self.requests.append(Request(list(token_ids), sampling, session_id))
        assert sampling.max_tokens > 0, "a request must ask for at least one token"
        if len(self.requests) > len(self.script):
            if self.hangs:
                await asyncio.Event().wait()
            raise RolloutError("engine 0: died. See its log.")
        said = self.script[len(self.requests) - 1]
        if len(said.token_ids) <= sampling.max_tokens:
            return said
        n = sampling.max_tokens
        return Generation(said.token_ids[:n], said.logprobs[:n], FinishReason.LENGTH, said.policy_version)

    async def update_weights(self, update: WeightUpdate) -> None:
        raise AssertionError("a script has no weights")

    async def sleep(self) -> None: ...

    async def shutdown(self) -> None: ...


def said(token_ids: Iterable[int], finish: FinishReason = FinishReason.STOP, *, version: int = 0) -> Generation:
    """A generation whose log-prob of token i is -i/100."""
    ids = list(token_ids)
    return Generation(ids, [-i / 100 for i in ids], finish, version)


def results_of(*texts: str) -> list[Message]:
    """Tool messages with these texts."""
    return [{"role": "tool", "content": text} for text in texts]


Answer = Callable[[ToolCall], Awaitable[ToolResult]]


@dataclass
class FakeToolbox:
    """Tools that answer from one function; counts the sessions opened and closed."""

    answer: Answer
    schemas: list[dict] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: ["add"])
    executed: list[ToolCall] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    num_closed: int = 0

    def open_session(self, trajectory_id: str, row: Mapping[str, Any] | None = None) -> FakeSession:
        self.opened.append(trajectory_id)
        return FakeSession(self)

    async def close(self) -> None: ...


@dataclass
class FakeSession:
    """One trajectory's use of a `FakeToolbox`."""

    toolbox: FakeToolbox

    async def execute(self, call: ToolCall) -> ToolResult:
        self.toolbox.executed.append(call)
        if call.error is not None:
            return ToolResult(call.name, "two", ToolStatus.PARSE_ERROR)
        return await self.toolbox.answer(call)

    async def close(self) -> None:
        self.toolbox.num_closed += 1


def answering(text: str, status: ToolStatus = ToolStatus.OK, *, stop: bool = False) -> FakeToolbox:
    """Tools that answer every call with one text."""

    async def answer(call: ToolCall) -> ToolResult:
        return ToolResult(call.name, text, status, stop=stop)

    return FakeToolbox(answer)


class _TimeSkipper(selectors.DefaultSelector):
    """Advances the clock to the next timer instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout and 0.0)
        if not events:
            self.now += timeout or 0.0
        return events


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.skipper = _TimeSkipper()
        super().__init__(self.skipper)

    def time(self) -> float:
        return self.skipper.now


def hold_up_loop(seconds: float) -> None:
    """Block the loop like `time.sleep`, in a test that runs `in_virtual_time`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _VirtualTimeLoop), "the clock is the test's own"
    loop.skipper.now += seconds


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine on an event loop whose clock stands still while it computes, and skips all waits.

    Tests of timers then take no time and are deterministic on a busy machine. Not for threads or other processes: their
    time does not count.
    """

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
