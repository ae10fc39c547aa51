"""One trajectory through an OpenAI-compatible server: messages and native tool calls instead of tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from rl.chat.templates import TEMPLATES
from rl.config.schema import Config
from rl.observability.clock import wall_time
from rl.remote.client import ChatClient, Completion, RefusedError
from rl.rollout.episode import request_seed
from rl.rollout.tool_environment import ToolEnvironment
from rl.thoughts import CLOSE, OPEN
from rl.tools.base import ServiceUnavailableError
from rl.tools.registry import Toolbox
from rl.types import Message, Prompt, Sampling, StopReason, ToolCall, Trajectory, Turn

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 4
"""There is no tokenizer: tool results are cut as if each token had so many characters."""
_TOO_LONG = re.compile(r"context.length|context_length|maximum context|max_model_len|prompt is too long", re.IGNORECASE)
"""How servers say that a conversation does not fit into the model's context."""


class WithoutTokenizer:
    """Stands for a renderer and a parser: the server renders prompts and parses calls."""

    def strip_end_of_turn(self, text: str) -> str:
        """The text itself; servers leave special tokens out."""
        return text

    def text_offsets(self, text: str) -> list[tuple[int, int]]:
        """Pieces of equal length in place of tokens."""
        size = _CHARACTERS_PER_TOKEN
        return [(start, min(start + size, len(text))) for start in range(0, len(text), size)]

    def parse(self, text: str) -> list[ToolCall]:
        """No calls: they stand beside the text."""
        return []


@dataclass(slots=True)
class _Talk:
    """A conversation in the making."""

    prompt: Prompt
    sample_index: int
    sampling: Sampling
    messages: list[Message]
    began_at: float
    """Reading of `time.monotonic`."""
    turns: list[Turn] = field(default_factory=list)
    prompt_length: int = 0
    response_length: int = 0
    """Tokens after the prompt, as the server counts them; results of tools count from the request after them."""


class EndpointLoop:
    """Runs trajectories, any number at once.

    Args:
        client: The server.
        toolbox: The tools; None without any.
        config: The run's configuration.
    """

    def __init__(self, client: ChatClient, toolbox: Toolbox | None, config: Config) -> None:
        self._client, self._toolbox, self._rl = client, toolbox, config.rl_config
        self._seed = config.megatron_training.seed

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        """Run one trajectory to its end. A failing server, a deadline or a broken service is its `StopReason`.

        Limits are those of `rl.rollout.agent_loop.AgentLoop`, except for the context, which is the server's.

        Args:
            prompt: The dataset row.
            sample_index: Number of the trajectory in its group.
            sampling: `max_tokens` bounds one turn; `seed`, or the run's where it is None, is the base from which each
                request's seed is derived.

        Returns:
            The trajectory, not yet scored, without tokens.
        """
        start = time.monotonic()
        talk = _Talk(prompt, sample_index, sampling, _prompt_messages(prompt, self._rl.prompt_type), start)
        session = self._toolbox.open_session(f"{prompt.id}/{sample_index}", prompt.extra) if self._toolbox else None
        plain = WithoutTokenizer()
        tools = ToolEnvironment(session, plain, plain, self._rl, None, lambda turn: None, start)
        try:
            stop_reason, failure = await self._run_in_time(talk, tools)
        finally:
            await tools.close()
        num_sampled = sum(turn.num_tokens for turn in talk.turns)
        return Trajectory(
            prompt,
            sample_index,
            [],
            talk.turns,
            stop_reason,
            failure=failure,
            started_at=wall_time(start),
            wall_s=time.monotonic() - start,
            prompt_length=talk.prompt_length,
            num_sampled=num_sampled,
            response_length=max(talk.response_length, num_sampled),
        )

    async def _run_in_time(self, talk: _Talk, tools: ToolEnvironment) -> tuple[StopReason, str | None]:
        """Run the turns; return the stop reason, and why the server failed."""
        deadline = asyncio.timeout(self._rl.trajectory_timeout)
        try:
            async with deadline:
                return await self._run_turns(talk, tools), None
        except TimeoutError:
            if not deadline.expired():
                raise
            return StopReason.DEADLINE, None
        except ServiceUnavailableError as error:
            return StopReason.ENGINE_FAILED, str(error)
        except RefusedError as error:
            is_too_long = _TOO_LONG.search(str(error)) is not None
            return (StopReason.LENGTH, None) if is_too_long else (StopReason.ENGINE_FAILED, str(error))

    async def _run_turns(self, talk: _Talk, tools: ToolEnvironment) -> StopReason:
        schemas = self._toolbox.schemas if self._toolbox is not None else []
        while (room := self._room(talk)) > 0:
            is_last = tools.is_last_turn
            start, seed = time.monotonic(), talk.sampling.seed if talk.sampling.seed is not None else self._seed
            sampling = replace(
                talk.sampling,
                max_tokens=min(room, talk.sampling.max_tokens),
                seed=request_seed(seed, talk.prompt.id, talk.sample_index, len(talk.turns), 0),
            )
            completion = await self._client.complete(talk.messages, schemas, sampling)
            turn, message = read_completion(completion, f"call-{len(talk.turns)}")
            turn.start_s, turn.generate_s, turn.is_last = start - talk.began_at, time.monotonic() - start, is_last
            talk.turns.append(turn)
            talk.prompt_length = talk.prompt_length or completion.prompt_tokens
            talk.response_length = completion.prompt_tokens + completion.num_tokens - talk.prompt_length
            if not turn.calls:
                return StopReason.LENGTH if turn.is_cut else StopReason.FINISHED
            if is_last:
                return StopReason.TOOL_LIMIT
            step = await tools.answer(turn)
            if step.stop_reason is not None:
                return step.stop_reason
            talk.messages.append(message)
            for result, call in zip(step.messages, message["tool_calls"], strict=True):
                talk.messages.append({**result, "tool_call_id": call["id"]})
        return StopReason.LENGTH

    def _room(self, talk: _Talk) -> int:
        """Tokens that the response may still have."""
        if not self._rl.multi_turn_enable:
            return talk.sampling.max_tokens if not talk.turns else 0
        return self._rl.max_total_response_length - talk.response_length


def read_completion(completion: Completion, call_ids: str) -> tuple[Turn, Message]:
    """Read a turn out of the server's answer.

    Args:
        completion: The answer.
        call_ids: Calls without an id are named after it, as `<call_ids>-0`.

    Returns:
        The turn, and the message to send back: without thoughts, and with `{}` for arguments that are not a JSON
        object, since servers refuse those. A call that the token limit cut off is no call.
    """
    message, text = completion.message, completion.message.get("content") or ""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    calls, sent = [], []
    for number, given in enumerate(message["tool_calls"]):
        call = _read_call(given["function"])
        if completion.is_cut and call.error is not None:
            continue
        calls.append(call)
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        function = {"name": call.name, "arguments": arguments}
        sent.append({"id": given.get("id") or f"{call_ids}-{number}", "type": "function", "function": function})
    shown = f"{OPEN}{thought}{CLOSE}\n{text}" if thought else text
    turn = Turn(shown, completion.num_tokens, calls, is_cut=completion.is_cut)
    return turn, {"role": "assistant", "content": text, **({"tool_calls": sent} if sent else {})}


def _read_call(function: dict[str, Any]) -> ToolCall:
    raw = function.get("arguments")
    try:
        arguments = json.loads(raw or "{}") if isinstance(raw, str | None) else raw
    except (ValueError, RecursionError) as error:
        return ToolCall(function["name"], {}, str(raw), f"the arguments are not valid JSON: {error}")
    if not isinstance(arguments, dict):
        return ToolCall(function["name"], {}, str(raw), f"the arguments must be a JSON object, got {arguments!r:.80}")
    return ToolCall(function["name"], arguments, str(raw))


def _prompt_messages(prompt: Prompt, prompt_type: str) -> list[Message]:
    """The prompt with what its template adds to messages; the template's text format is the server's affair."""
    template, messages = TEMPLATES[prompt_type], [dict(message) for message in prompt.messages]
    for message in messages if template.user_suffix else ():
        if message["role"] == "user":
            message["content"] += template.user_suffix
    if template.default_system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": template.default_system})
    return _with_call_ids(messages)


def _with_call_ids(messages: list[Message]) -> list[Message]:
    """Calls of a prompt's messages as servers take them: with an id that their results name, and arguments as text."""
    waiting: deque[str] = deque()
    for number, message in enumerate(messages):
        if message["role"] == "tool" and waiting:
            message.setdefault("tool_call_id", waiting.popleft())
        if not message.get("tool_calls"):
            continue
        calls = []
        for index, call in enumerate(message["tool_calls"]):
            function = dict(call.get("function", call))
            if not isinstance(function.get("arguments"), str):
                function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
            calls.append({"id": call.get("id") or f"prompt-{number}-{index}", "type": "function", "function": function})
        message["tool_calls"], waiting = calls, deque(str(call["id"]) for call in calls)
    return messages
