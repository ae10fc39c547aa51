import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS
from rl.types import ToolCall

HERMES = PARSERS["hermes"]
GOOD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_hermes_reads_a_call_and_keeps_its_text():
    (call,) = HERMES.parse("Let me add.\n" + GOOD + "<|im_end|>")
    assert (call.name, call.arguments, call.error) == ("add", {"a": 1}, None)
    assert call.raw == '\n{"name": "add", "arguments": {"a": 1}}\n'


def test_hermes_reads_several_calls_in_order():
    calls = HERMES.parse(GOOD + GOOD.replace("add", "mul"))
    assert [call.name for call in calls] == ["add", "mul"]


@pytest.mark.parametrize(
    "text", ["", "no call", "<|im_end|>", "</tool_call>", "tool_call", "<think>a</think> \\boxed{1}"]
)
def test_hermes_finds_no_call_where_none_is(text):
    assert HERMES.parse(text) == []


def test_hermes_keeps_good_calls_beside_malformed_ones():
    calls = HERMES.parse(GOOD + "<tool_call>{oops}</tool_call>" + GOOD + "<tool_call>{" + GOOD)
    assert [call.name for call in calls] == ["add", "", "add", "", "add"]
    assert [call.error is None for call in calls] == [True, False, True, False, True]


def test_hermes_leaves_tags_inside_a_string_to_the_string():
    code = "print('</tool_call><tool_call></think><think>')"
    text = '<tool_call>{"name": "run", "arguments": {"code": "' + code + '"}}</tool_call>'
    (call,) = HERMES.parse(text)
    assert call.arguments == {"code": code}


def test_hermes_ignores_calls_in_thoughts():
    assert HERMES.parse("<think>maybe " + GOOD + "</think>no") == []
    assert [call.name for call in HERMES.parse("<think>x</think>" + GOOD)] == ["add"]
    (refused,) = HERMES.parse("<think>never closed " + GOOD)
    assert refused.is_in_thought


def test_hermes_ignores_calls_before_a_thought_that_the_prompt_opened_ends():
    assert [c.name for c in HERMES.parse(GOOD + "</think>" + GOOD.replace("add", "mul"))] == ["mul"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1', "cut off or not closed"),
        ('<tool_call>{"name": "add", "arguments": {}} or so', "not closed. End it with </tool_call>"),
        ("<tool_call>", "cut off or not closed"),
        ("<tool_call>{'name': 'add'}</tool_call>", "Expecting property name enclosed in double quotes at character 1"),
        (
            '<tool_call>{"name": "a", "arguments": {"c": "x\ny"}}</tool_call>',
            r"write a line break inside a string as \n",
        ),
        ('<tool_call>{"arguments": {}}</tool_call>', "has no 'name'"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "needs a text as 'name', got a number"),
        ('<tool_call>{"name": "add"}</tool_call>', "call of 'add' has no 'arguments'"),
        ('<tool_call>{"name": "add", "arguments": "a"}</tool_call>', "has a text as 'arguments', not an object"),
        ('<tool_call>{"name": "add", "arguments": "[1]"}</tool_call>', "has a text as 'arguments', not an object"),
        ('<tool_call>{"name": "add", "arguments": null}</tool_call>', "has null as 'arguments', not an object"),
        ("<tool_call>[1]</tool_call>", "must be a JSON object, got an array"),
        ('<tool_call>{"name": "add", "arguments": {}} or so</tool_call>', "text after the JSON object"),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "NaN and Infinity are no JSON values"),
        ('<tool_call>{"name": "add", "arguments": {"a": -1e999}}</tool_call>', "NaN and Infinity are no JSON values"),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "unpaired surrogate"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "nested too deeply"),
        ('<tool_call>{"a": ' + "9" * 5000 + "}</tool_call>", "not valid JSON"),
    ],
)
def test_hermes_explains_what_is_wrong_with_a_call(text, part):
    (call,) = HERMES.parse(text)
    assert call.error is not None
    assert part in call.error


@pytest.mark.parametrize("end", ["", "\n", " \n\t"])
def test_hermes_reads_a_last_call_without_its_closing_tag(end):
    (call,) = HERMES.parse(GOOD.removesuffix("\n</tool_call>") + end)
    assert (call.name, call.arguments, call.error, call.lacks_end) == ("add", {"a": 1}, None, True)
    assert not HERMES.parse(GOOD)[0].lacks_end
    two = HERMES.parse(GOOD.removesuffix("</tool_call>") + GOOD)
    assert [(call.error is None, call.arguments) for call in two] == [(False, {}), (True, {"a": 1})]


@pytest.mark.parametrize(
    "arguments", ['"{\\"a\\": 1}"', '" {\\"a\\": 1}\\n"', '{"a": 1}', '{"a": 2, "a": 1}', '{"\\u0061": 1}']
)
def test_hermes_reads_arguments_as_an_object_or_as_the_text_of_one(arguments):
    (call,) = HERMES.parse(f'<tool_call>{{"name": "add", "arguments": {arguments}}}</tool_call>')
    assert (call.arguments, call.error) == ({"a": 1}, None)


def test_hermes_names_the_tool_of_a_call_without_arguments():
    (call,) = HERMES.parse('<tool_call>{"name": "add"}</tool_call>')
    assert call.name == "add"


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "{",
    "}",
    '"',
    '"name"',
    ":",
    '"arguments"',
    "\\",
    "\n",
    "é",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join))
def test_hermes_reads_any_text_without_raising(text):
    for call in HERMES.parse(text):
        assert isinstance(call, ToolCall)
        assert (call.error is None) == bool(call.name and call.error is None)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_hermes_reads_any_call_body_without_raising(text):
    HERMES.parse("<tool_call>" + text)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["</tool_call>", "<think>", "</think>"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT.filter(bool), st.dictionaries(TEXT, JSON, max_size=4)), min_size=1, max_size=3))
def test_hermes_reads_back_what_it_renders(named_arguments):
    calls = [ToolCall(name, arguments) for name, arguments in named_arguments]
    read = HERMES.parse("I call.\n" + "\n".join(HERMES.render(call) for call in calls) + "<|im_end|>")
    assert [(call.name, call.arguments, call.error) for call in read] == [(c.name, c.arguments, None) for c in calls]


def test_hermes_renders_as_qwen_templates_do():
    call = ToolCall("run", {"code": "print('é')"})
    body = json.dumps({"name": "run", "arguments": {"code": "print('é')"}}, ensure_ascii=False)
    assert HERMES.render(call) == f"<tool_call>\n{body}\n</tool_call>"
