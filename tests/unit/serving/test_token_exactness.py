"""Every sampled token is trained once, as sampled, whatever a client does to the history it sends back."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from transformers import PreTrainedTokenizerFast

from rl.batch.tree import num_shared
from rl.batches import Sample, TrajectoryHeader
from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import RLConfig
from rl.observability.metrics import sequence_metrics
from rl.rollout.episode import Episode
from rl.rollout.headers import headers_of, rows_of
from rl.rollout.rollout_function import Policy
from rl.rollout.tool_environment import ToolEnvironment
from rl.serving.client import AgentClient
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint
from rl.types import (
    FinishReason,
    Generation,
    Sampling,
    SequenceStart,
    Start,
    StopReason,
    TokenSequence,
    Trajectory,
    Turn,
)
from tests.chat_templates import QWEN3, byte_level
from tests.fakes import said
from tests.unit.serving.agents import ADD
from tests.unit.serving.parts import PROMPT, SAMPLING, ids, make_renderer

USER = {"role": "user", "content": "What is 1 + 2?"}
MORE = {"role": "user", "content": "and now?"}
END = "<|im_end|>"


def spelled(text: str, seed: int, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that say a text, but cut where an encoder would not: between any two characters, or all of them."""
    cuts = random.Random(seed)
    found, start = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or cuts.random() < 0.5:
            found += tokenizer.encode(text[start:end], add_special_tokens=False)
            start = end
    return found


@dataclass
class SpellingEngine:
    """Says the texts of a script, or token ids, in spellings of its own; waits a little, so that requests overlap."""

    script: list[str | list[int]]
    tokenizer: PreTrainedTokenizerFast
    asked: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """Context and sampled tokens of each request."""

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        number = len(self.asked)
        text = self.script[number]
        end = self.tokenizer.convert_tokens_to_ids(END)
        sampled = [*spelled(text, number, self.tokenizer), end] if isinstance(text, str) else text
        self.asked.append((list(token_ids), sampled))
        await asyncio.sleep(0.01)
        return said(sampled)


@dataclass
class Conversation:
    """A rollout under way, as a client sees it, and what became of it."""

    openai: AsyncOpenAI
    model: str
    engine: SpellingEngine
    episode: Episode

    async def ask(self, messages: Sequence[Any], **keys: Any) -> Any:
        """The first choice's message, as plain values."""
        done = await self.openai.chat.completions.create(model=self.model, messages=list(messages), **keys)
        choices = [choice.message.model_dump(exclude_none=True) for choice in done.choices]
        return choices if "n" in keys else choices[0]

    def check(self) -> TrajectoryHeader:
        """Each request's tokens are in one row, with mask 1, behind the context that the engine saw, and no others."""
        trajectory = self.episode.finish(StopReason.FINISHED, 1.0)
        rows = rows_of([trajectory])
        (header,), _ = headers_of([trajectory.without_tokens()], rows)
        found = Counter(turn for row in rows for turn in sampled_turns(row))
        assert found == Counter((tuple(context), tuple(sampled)) for context, sampled in self.engine.asked)
        assert header.num_as_sampled == header.num_sampled == sum(len(sampled) for _, sampled in self.engine.asked)
        assert len(header.starts) == len(trajectory.sequences)
        assert len(rows) == len(header.starts), "every sequence was sampled in"
        for row, start in zip(header.rows, header.starts, strict=True):
            if start.branches_from is not None:  # the update stores it once
                assert num_shared(row.path, header.rows[start.branches_from].path) >= start.num_copied
        return header

    def reasons(self) -> list[Start]:
        """Why each sequence but the first began."""
        return [start.why for start in self.check().starts if start.why is not Start.FIRST]


def sampled_turns(row: Sample) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Context and tokens of each stretch with mask 1."""
    token_ids, mask = row.token_ids.tolist(), [0, *row.loss_mask.tolist(), 0]
    edges = [i for i in range(len(token_ids) + 1) if mask[i] != mask[i + 1]]
    return [(tuple(token_ids[:a]), tuple(token_ids[a:b])) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@asynccontextmanager
async def conversation(*script: str | list[int], renderer: Renderer | None = None) -> Any:
    renderer, parser, rl = renderer or make_renderer(), PARSERS["hermes"], RLConfig(multi_turn_enable=True)
    engine = SpellingEngine(list(script), renderer.tokenizer)
    episode = Episode(engine, renderer, PROMPT, 0, SAMPLING, (), 8192, 4096)
    policy = Policy(episode, parser, ToolEnvironment(None, renderer, parser, rl, None, lambda turn: None))
    endpoint = Endpoint(Dialogs(renderer.tokenizer, rl), model="tiny", max_model_len=8192)
    await endpoint.start()
    client: AgentClient = endpoint.open(policy, SAMPLING)
    try:
        async with client.openai() as openai:
            yield Conversation(openai, client.model, engine, episode)
    finally:
        await endpoint.close()


CALL = '<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>'
ARGUMENTS = '{"a": 1, "who": "J\\u00fcrgen", "x": {"p": 0.5, "q": [1, 2]}}'
ADD_ANY = {"type": "function", "function": {**ADD["function"], "parameters": {"type": "object"}}}


def rewritten_arguments(write: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def rewrite(message: dict[str, Any]) -> dict[str, Any]:
        (call,) = message["tool_calls"]
        function = {**call["function"], "arguments": write(json.loads(call["function"]["arguments"]))}
        return {**message, "tool_calls": [{**call, "function": function}]}

    return rewrite


def reversed_keys(value: Any) -> Any:
    return {key: reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


KEPT: dict[str, tuple[str | list[int], Callable[[dict[str, Any]], Any]]] = {
    "as it was": ("The answer is 3.", lambda m: m),
    "space around the text": ("  The answer\n\nis 3.  \n", lambda m: {**m, "content": f"\n {m['content']}\t "}),
    "text stripped by line ends": ("The answer is 3. \n", lambda m: {**m, "content": m["content"].strip()}),
    "text in parts": (
        "The answer is 3.",
        lambda m: {
            **m,
            "content": [{"type": "text", "text": m["content"][:5]}, {"type": "text", "text": m["content"][5:]}],
        },
    ),
    "unicode over several tokens": ("naïve 🤖 日本 e\u0301 \u200b.", lambda m: m),
    "unicode through ascii json": ("naïve 🤖 日本", lambda m: json.loads(json.dumps(m, ensure_ascii=True))),
    "half of a character": ([*ids("The 🤖")[:-1], *ids(END)], lambda m: m),
    "nothing said": (ids(END), lambda m: {"role": "assistant", "content": ""}),
    "names of special tokens": ("The <|im_end|>answer <|im_start|>user".replace("<|", "<\u200b|"), lambda m: m),
    "thoughts dropped": (
        "<think>\nI see.\n</think>\n\nThe answer",
        lambda m: {"role": "assistant", "content": m["content"]},
    ),
    "thoughts kept in the text": (
        "<think>\nI see.\n</think>\n\nThe answer",
        lambda m: {"role": "assistant", "content": f"<think>{m['reasoning_content']}</think>{m['content']}"},
    ),
    "thoughts under another name": (
        "<think>I see.</think>The answer",
        lambda m: {"role": "assistant", "content": m["content"], "reasoning": m["reasoning_content"]},
    ),
    "arguments with other spacing": (CALL % ARGUMENTS, rewritten_arguments(lambda a: json.dumps(a, indent=2))),
    "arguments without space": (CALL % ARGUMENTS, rewritten_arguments(lambda a: json.dumps(a, separators=(",", ":")))),
    "arguments with other key order": (CALL % ARGUMENTS, rewritten_arguments(lambda a: json.dumps(reversed_keys(a)))),
    "arguments with escaped unicode": (
        CALL % ARGUMENTS,
        rewritten_arguments(lambda a: json.dumps(a, ensure_ascii=True)),
    ),
    "arguments with plain unicode": (
        CALL % ARGUMENTS,
        rewritten_arguments(lambda a: json.dumps(a, ensure_ascii=False)),
    ),
    "text beside a call dropped": (
        f"Let me compute.\n{CALL % ARGUMENTS}",
        lambda m: {"role": "assistant", "tool_calls": m["tool_calls"]},
    ),
    "text beside a call null": (f"Let me compute.\n{CALL % ARGUMENTS}", lambda m: {**m, "content": None}),
    "fields that nobody asked for": (
        "The answer",
        lambda m: {**m, "refusal": None, "annotations": [], "name": "agent"},
    ),
}


@pytest.mark.parametrize("name", KEPT)
async def test_a_turn_that_comes_back_keeps_its_tokens(name: str):
    text, change = KEPT[name]
    async with conversation(text, "one", "two") as rollout:
        tools = {"tools": [ADD_ANY]}
        messages: list[Any] = [USER]
        message = await rollout.ask(messages, **tools)
        behind = [{"role": "tool", "tool_call_id": c["id"], "content": "2"} for c in message.get("tool_calls", [])]
        messages += [change(message), *(behind or [MORE])]
        messages += [await rollout.ask(messages, **tools), MORE]
        await rollout.ask(messages, **tools)
        assert rollout.reasons() == []


async def test_an_edited_turn_begins_a_sequence_that_shares_what_was_before_it():
    async with conversation("The answer is 3.", "one", "two") as rollout:
        first = await rollout.ask([USER])
        second = await rollout.ask([USER, first, MORE])
        edited = {**second, "content": "another"}
        await rollout.ask([USER, first, MORE, edited, MORE])
        assert rollout.reasons() == [Start.EDITED_HISTORY]
        (start,) = (s for s in rollout.check().starts if s.why is not Start.FIRST)
        assert start.branches_from is not None and start.num_copied == len(rollout.engine.asked[0][0]) + len(
            rollout.engine.asked[0][1]
        )


async def test_a_summarized_history_begins_a_sequence_and_goes_on_in_it():
    async with conversation("The answer is 3.", "one", "two", "three") as rollout:
        first = await rollout.ask([USER])
        await rollout.ask([USER, first, MORE])
        summary = [USER, {"role": "user", "content": "So far: the answer"}, MORE]
        third = await rollout.ask(summary)
        await rollout.ask([*summary, third, MORE])
        assert rollout.reasons() == [Start.EDITED_HISTORY]


async def test_a_window_over_the_last_messages_begins_a_sequence_with_each_request():
    async with conversation("one", "two", "three") as rollout:
        messages = [USER]
        for _ in range(3):
            messages += [await rollout.ask(messages[-3:]), MORE]
        assert len(rollout.check().starts) == 2  # the window of the second request is the whole conversation


async def test_a_trajectory_tells_what_the_agent_said_before_each_turn():
    async with conversation("The answer", "one", "two", "three") as rollout:
        first = await rollout.ask([USER])
        await asyncio.gather(rollout.ask([USER, first, MORE]), rollout.ask([USER, first, {**MORE, "content": "one"}]))
        await rollout.ask([{"role": "system", "content": "The second"}, USER])
        trajectory = rollout.episode.finish(StopReason.FINISHED, 1.0)
        asked = {turn.text.removesuffix(END): [m["content"] for m in turn.asked] for turn in trajectory.turns}
        question = USER["content"]  # the data row's own is not told again
        assert asked == {"The answer": [], "one": ["and now?"], "two": ["one"], "three": ["The second", question]}
        of_sequences = [[turn.text for turn in trajectory.turns if turn.sequence == i] for i in range(3)]
        starts = {start.why: texts for start, texts in zip(trajectory.starts, of_sequences, strict=True)}
        assert starts == {
            Start.FIRST: [f"The answer{END}", f"one{END}"],
            Start.SECOND_CONTINUATION: [f"two{END}"],
            Start.NEW_CONVERSATION: [f"three{END}"],
        }


async def test_two_agents_of_one_rollout_have_a_sequence_each():
    async with conversation(*("one", "two", "three") * 2) as rollout:
        agents = [[{"role": "system", "content": role}, USER] for role in ("The first", "The second")]
        for _ in range(3):
            for messages in agents:
                messages += [await rollout.ask(messages), MORE]
        assert rollout.reasons() == [Start.NEW_CONVERSATION]


async def test_parallel_requests_share_the_turn_that_they_continue():
    async with conversation("The answer", *["one", "two", "three", "two", "one"]) as rollout:
        first = await rollout.ask([USER])
        ways = [{"role": "user", "content": text} for text in ("and now?", "one", "two")]
        replies = await asyncio.gather(*(rollout.ask([USER, first, way]) for way in ways))
        await asyncio.gather(
            *(rollout.ask([USER, first, way, r, MORE]) for way, r in zip(ways[:2], replies, strict=False))
        )
        assert rollout.reasons() == [Start.SECOND_CONTINUATION] * 2
        header = rollout.check()
        assert sum(start.branches_from is not None for start in header.starts) == 2


async def test_parallel_requests_of_the_same_messages_are_sampled_and_trained_apart():
    async with conversation("The answer", "The answer is 3.", "The", "one") as rollout:
        replies = await asyncio.gather(*(rollout.ask([USER]) for _ in range(3)))
        await rollout.ask([USER, replies[1], MORE])
        assert rollout.reasons() == [Start.REPEATED_REQUEST] * 2


async def test_each_of_several_choices_can_be_continued():
    async with conversation("The answer", "The answer is 3.", "The", "one", "two", "three") as rollout:
        choices = await rollout.ask([USER], n=3)
        for choice in choices:
            await rollout.ask([USER, choice, MORE])
        assert rollout.reasons() == [Start.REPEATED_REQUEST] * 2


async def test_a_template_that_drops_thoughts_begins_a_sequence_where_the_user_speaks():
    renderer = Renderer(byte_level(QWEN3), "empty", [])
    thought = "<think>\nI see.\n</think>\n\n"
    async with conversation(f"{thought}{CALL % ARGUMENTS}", f"{thought}one", "two", renderer=renderer) as rollout:
        first = await rollout.ask([USER], tools=[ADD_ANY])
        result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "2"}
        second = await rollout.ask([USER, first, result], tools=[ADD_ANY])
        assert rollout.reasons() == []
        await rollout.ask([USER, first, result, second, MORE], tools=[ADD_ANY])
        assert rollout.reasons() == [Start.TEMPLATE_REWRITES]


async def test_other_tools_begin_a_sequence():
    async with conversation("The answer", "one") as rollout:
        first = await rollout.ask([USER])
        await rollout.ask([USER, first, MORE], tools=[ADD])
        assert rollout.reasons() == [Start.OTHER_TOOLS]


async def test_a_turn_of_another_distribution_is_context_in_all_that_follows():
    async with conversation("The answer", "one", "two") as rollout:
        first = await rollout.ask([USER])
        second = await rollout.ask([USER, first, MORE], temperature=0.5)
        await rollout.ask([USER, first, MORE, second, MORE])
        trajectory = rollout.episode.finish(StopReason.FINISHED, 1.0)
        (row,) = rows_of([trajectory])
        (header,), _ = headers_of([trajectory.without_tokens()], [row])
        asked = [(tuple(context), tuple(sampled)) for context, sampled in rollout.engine.asked]
        assert sampled_turns(row) == [asked[0], asked[2]]
        assert (header.num_as_sampled, header.num_untrained) == (header.num_sampled, len(asked[1][1]))


async def test_a_turn_that_a_publish_interrupts_is_trained_as_sampled():
    async with conversation("The answer", "one") as rollout:
        whole = rollout.engine
        spans: list[Generation] = []

        async def in_spans(token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
            if not spans:
                found = await whole.generate(token_ids, sampling, session_id=session_id)
                half = len(found.token_ids) // 2
                spans.append(replace(found, token_ids=found.token_ids[half:], logprobs=found.logprobs[half:]))
                cut = {"finish_reason": FinishReason.ABORT, "policy_version": 4}
                return replace(found, token_ids=found.token_ids[:half], logprobs=found.logprobs[:half], **cut)
            return replace(spans.pop(), policy_version=5)

        rollout.episode.engine = SimpleNamespace(generate=in_spans)
        first = await rollout.ask([USER])
        await rollout.ask([USER, first, MORE])
        header = rollout.check()
        assert rollout.reasons() == [] and header.policy_versions == [4, 5]


def test_what_was_encoded_again_is_not_as_sampled():
    sequence = TokenSequence([1, 2])
    sequence.append_sampled([7, 8], [-1.0, -1.0], 0)
    turns = [Turn("", 1, checksum=zlib.crc32(np.array([token], np.int32).tobytes())) for token in (7, 9)]
    trajectory = Trajectory(PROMPT, 0, [sequence], turns, StopReason.FINISHED, starts=[SequenceStart(Start.FIRST)])
    (header,), _ = headers_of([trajectory.without_tokens()], rows_of([trajectory]))
    assert (header.num_as_sampled, header.num_sampled) == (1, 2)
    assert sequence_metrics([header])["rollout/as_sampled_share"] == 0.5


@pytest.mark.parametrize("seed", range(6))
async def test_a_client_that_does_anything_at_random(seed: int):
    """Continues, retries, edits, cuts and interleaves conversations, some at once."""
    rng = random.Random(seed)
    words = ["The answer", " is 3.\n", "naïve 🤖", "Let me", "<think>one</think>two", CALL % ARGUMENTS, "", " "]
    script: list[str | list[int]] = ["".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(40)]
    async with conversation(*script) as rollout:
        histories: list[list[Any]] = [[USER], [{"role": "system", "content": "The second"}, USER]]

        async def step() -> None:
            messages = list(rng.choice(histories))
            if len(messages) > 3 and rng.random() < 0.3:
                place = rng.randrange(1, len(messages))
                messages[place] = {**messages[place], "content": f"{messages[place].get('content') or ''}!"}
            if rng.random() < 0.3:
                messages = messages[: rng.randint(1, len(messages))]
            if messages[-1]["role"] == "assistant" or messages[-1]["role"] == "system":
                messages.append(MORE)
            reply = await rollout.ask(messages, tools=[ADD_ANY])
            behind = [{"role": "tool", "tool_call_id": c["id"], "content": "2"} for c in reply.get("tool_calls", [])]
            histories.append([*messages, reply, *(behind or [MORE])])

        for _ in range(10):
            await asyncio.gather(*(step() for _ in range(rng.randint(1, 4))))
        header = rollout.check()
        assert header.num_sampled > 100
