from __future__ import annotations

from typing import Any

import pytest

from rl.chat.messages import is_echo, normalized, reply_to
from rl.chat.parsers import PARSERS
from rl.errors import DataError
from rl.types import Message, Turn

SEARCH = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
}
CALL_TEXT = {
    "hermes": '<tool_call>\n{"name": "search", "arguments": {"query": "sum"}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=search>\n<parameter=query>\nsum\n</parameter>\n</function>\n</tool_call>",
    "llama3_json": '{"name": "search", "parameters": {"query": "sum"}}',
    "search_r1": "<search> sum </search>",
}
CALLS = [{"id": "x-0", "type": "function", "function": {"name": "search", "arguments": '{"query": "sum"}'}}]
READ_CALLS = [{"type": "function", "function": {"name": "search", "arguments": {"query": "sum"}}}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"role": "user", "content": "one"}, {"role": "user", "content": "one"}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": []},
            {"role": "assistant", "content": ""},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            {"role": "user", "content": "one two"},
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": CALLS[0]["function"]}]},
            {"role": "assistant", "content": "", "tool_calls": READ_CALLS},
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "search", "arguments": "oops"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": "oops"}}],
            },
        ),
    ],
)
def test_normalized_brings_what_clients_write_into_one_form(given: Message, expected: Message):
    assert normalized(given) == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"content": "one"}, "needs a role"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content must be text"),
        ({"role": "user", "content": 3}, "content must be text"),
        ({"role": "assistant", "content": "", "tool_calls": ["search"]}, "needs function.name"),
    ],
)
def test_normalized_refuses_what_is_no_text_message(given: Message, reason: str):
    with pytest.raises(DataError, match=reason):
        normalized(given)


def reply(text: str, parser: str = "hermes", **fields: Any) -> Message:
    chosen = PARSERS[parser].for_tools([SEARCH])
    return reply_to(Turn(text + "<end>", 1, calls=chosen.parse(text), **fields), text, chosen, "x")


@pytest.mark.parametrize("parser", CALL_TEXT)
def test_reply_to_takes_calls_out_of_the_text(parser: str):
    text = f"<think>\nI see.\n</think>\n\nLet me look.\n{CALL_TEXT[parser]}"
    if parser == "llama3_json":
        text = CALL_TEXT[parser]
    message = reply(text, parser)
    arguments = '{"query": "sum"}'
    assert message["tool_calls"][0]["id"] == "x-0"
    assert message["tool_calls"][0]["function"] == {"name": "search", "arguments": arguments}
    assert message["content"] == ("" if parser == "llama3_json" else "Let me look.")
    assert message.get("reasoning_content") == (None if parser == "llama3_json" else "I see.")


def test_reply_to_leaves_a_call_that_cannot_be_read_in_the_text():
    message = reply("Look. <tool_call>{oops}</tool_call>")
    assert message == {"role": "assistant", "content": "Look. <tool_call>{oops}</tool_call>"}


def test_reply_to_knows_a_thought_that_the_header_opened():
    message = reply("I see.\n</think>\n\nThree.", begins_in_thought=True)
    assert message == {"role": "assistant", "content": "Three.", "reasoning_content": "I see."}


OWN = {"role": "assistant", "content": "Let me look.", "reasoning_content": "I see.", "tool_calls": CALLS}
OTHER_CALL = {"type": "function", "function": {"name": "search", "arguments": {"query": "product"}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"reasoning_content": None}, True),
        ({"reasoning_content": None, "reasoning": "I see."}, True),
        ({"content": " Let me look.\n"}, True),
        ({"content": "<think>\nI see.\n</think>\n\nLet me look.", "reasoning_content": None}, True),
        ({"content": [{"type": "text", "text": "Let me look."}], "refusal": None, "annotations": []}, True),
        ({"tool_calls": [{**CALLS[0], "id": "another"}]}, True),
        ({"tool_calls": READ_CALLS}, True),
        ({"content": None}, True),
        ({"content": None, "reasoning_content": None}, True),
        ({"content": None, "tool_calls": [{**CALLS[0], "id": "another"}]}, False),
        ({"content": "Let me see."}, False),
        ({"reasoning_content": "I saw."}, False),
        ({"tool_calls": None}, False),
        ({"tool_calls": [OTHER_CALL]}, False),
        ({"tool_calls": CALLS * 2}, False),
    ],
)
def test_is_echo_knows_a_message_by_what_it_says_and_calls(changes: Message, expected: bool):
    assert is_echo(normalized({**OWN, **changes}), normalized(OWN)) is expected


def test_is_echo_takes_no_content_for_an_empty_one():
    own = {"role": "assistant", "content": "", "tool_calls": CALLS}
    assert is_echo(normalized({**own, "content": None}), normalized(own))


def test_is_echo_knows_what_the_client_of_openai_sends_back():
    chat = pytest.importorskip("openai.types.chat")
    text = f"<think>\nI see.\n</think>\n\nLet me look.\n{CALL_TEXT['hermes']}"
    for own in (reply(text), reply(CALL_TEXT["hermes"]), reply("Three.")):
        received = chat.ChatCompletionMessage.model_validate(own)
        whole = received.model_dump()
        for echo in (whole, received.model_dump(exclude_none=True), {**whole, "content": whole["content"] or None}):
            assert is_echo(normalized(echo), normalized(own))
