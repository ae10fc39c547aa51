from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS
from rl.types import ToolCall
from tests.unit.chat.parsers.test_hermes import JSON, TEXT

LLAMA = PARSERS["llama3_json"]
GOOD = '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"<|python_tag|>{GOOD}<|eom_id|>",
        f"Let me add.\n{GOOD}<|eot_id|>",
        '{"name": "add", "arguments": {"a": 1}}',
        '{"type": "function", "name": "add", "parameters": {"a": 1}}',
        '{ "parameters": {"a": 1}, "name": "add" }',
        '<|python_tag|>\n{"id": 7, "name": "add", "parameters": {"a": 1}}',
        '{"id": 7, "name": "add", "parameters": {"a": 1}}',
        '{"name": "add", "parameters": "{\\"a\\": 1}"}',
        '{"name": "add", "parameters": {"a": 2}, "arguments": {"a": 1}}',
        f"<|python_tag|>[{GOOD}]",
        f"The set {{x: x > 1}} and \\boxed{{5}}: {GOOD}",
    ],
)
def test_llama3_json_reads_a_call(text):
    (call,) = LLAMA.parse(text)
    assert (call.name, call.arguments, call.error) == ("add", {"a": 1}, None)
    assert call.raw.startswith("{")
    assert call.raw.endswith("}")


def test_llama3_json_reads_several_calls_in_order():
    assert [call.name for call in LLAMA.parse(f"{GOOD}; {GOOD.replace('add', 'mul')}\n{GOOD}")] == ["add", "mul", "add"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "no call",
            "{1, 2}",
            '{"answer": 5}',
            "\\boxed{5}",
            "the set {x: x > 1}",
            '{"type": "object"}',
            "{'a': 1}",
        ),
        *(
            '{"name": "Alice", "age": 3}',
            'She is {"name": "Alice"}.',
            '{"name": "Alice", "age": 3',
            '{"parameters": {}}',
        ),
        *(f'{{"tool": {GOOD}}}', f'{{"x": NaN, "tool": {GOOD}}}', f'{{"x": "\\ud800", "tool": [{GOOD}]}}', "{" * 9),
    ],
)
def test_llama3_json_finds_no_call_where_none_is(text):
    assert LLAMA.parse(text) == []


def test_llama3_json_reads_no_call_inside_another():
    (call,) = LLAMA.parse('{"name": "add", "parameters": {"inner": {"name": "mul", "parameters": {}}}}')
    assert call.name == "add"


def test_llama3_json_keeps_good_calls_beside_malformed_ones():
    calls = LLAMA.parse(f'{GOOD}; {{"name": oops}}; {GOOD}; {{"name": "mul", "parameters": {{"a": 1,}}}} {GOOD}')
    assert [call.error is None for call in calls] == [True, False, True, False, True]


def test_llama3_json_runs_nothing_out_of_a_malformed_call():
    inner = '{"name": "mul", "parameters": {}}'
    (call,) = LLAMA.parse(
        f'{{"name": "add", "parameters": {{"x": NaN, "inner": {inner}, "more": [{inner}, {inner}]}}}}'
    )
    assert call.error is not None
    assert [c.error is None for c in LLAMA.parse(f'{{"name": "add", oops: {inner}}}\n{GOOD}')] == [False, True]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"name": "add", "parameters": {"a": 1', "or cut off: Expecting ',' delimiter at character 37"),
        ('<|python_tag|>{"name": "add"}', "call of 'add' has no 'parameters'"),
        ('<|python_tag|>{"parameters": {}}', "has no 'name'"),
        ('{"parameters": {"a": 1,}', "not valid JSON, or cut off"),
        ('{"name": "add", "parameters": {"a": NaN}}', "NaN and Infinity are no JSON values"),
        ('{"name": "add", "parameters": "a"}', "has a text as 'parameters', not an object"),
        ("<|python_tag|>print(1)", "<|python_tag|> needs a JSON object"),
        ("<|python_tag|>{1}", "not valid JSON"),
        ('{"name": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_llama3_json_explains_what_is_wrong_with_a_call(text, part):
    (call,) = LLAMA.parse(text)
    assert call.error is not None
    assert part in call.error


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT.filter(bool), st.dictionaries(TEXT, JSON, max_size=4)), min_size=1, max_size=3))
def test_llama3_json_reads_back_what_it_renders(named_arguments):
    calls = [ToolCall(name, arguments) for name, arguments in named_arguments]
    read = LLAMA.parse("; ".join(LLAMA.render(call) for call in calls))
    assert [(call.name, call.arguments, call.error) for call in read] == [(c.name, c.arguments, None) for c in calls]
