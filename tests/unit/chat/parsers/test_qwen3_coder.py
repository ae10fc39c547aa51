from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS
from rl.chat.parsers.plain_text import to_value
from rl.types import ToolCall

FIELDS = {
    "code": {"type": "string"},
    "n": {"type": "integer"},
    "x": {"type": ["number", "null"]},
    "flag": {"type": "boolean"},
    "items": {"type": "array"},
    "point": {"$ref": "#/$defs/Point"},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "run",
        "parameters": {"type": "object", "properties": FIELDS, "$defs": {"Point": {"type": "object"}}},
    },
}
QWEN = PARSERS["qwen3_coder"].for_tools([TOOL])
GOOD = "<tool_call>\n<function=run>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>"


def test_qwen3_coder_reads_a_call_and_keeps_its_text():
    (call,) = QWEN.parse("Let me run.\n" + GOOD)
    assert (call.name, call.arguments, call.error) == ("run", {"n": 1}, None)
    assert call.raw == "<function=run>\n<parameter=n>\n1\n</parameter>\n</function>"


def test_qwen3_coder_takes_types_from_the_schema():
    values = {"code": "1", "n": 2, "x": None, "flag": True, "items": [1, "a"], "point": {"x": 1}, "new": "3"}
    written = {
        "code": "1",
        "n": " 2",
        "x": "null",
        "flag": "True",
        "items": '[1, "a"]',
        "point": '{"x": 1}',
        "new": "3",
    }
    parameters = "".join(f"<parameter={k}>{v}</parameter>" for k, v in written.items())
    (call,) = QWEN.parse(f"<tool_call><function=run>{parameters}</function></tool_call>")
    assert (call.arguments, call.error) == (values, None)


NULLABLE = {"type": ["string", "null"]}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("one", {"type": "integer"}, "one"),
        ("1 2", {"type": "integer"}, "1 2"),
        ("2.0", {"type": "integer"}, 2.0),
        ("+5", {"type": "integer"}, 5),
        ("True", {"type": "integer"}, "True"),
        ("2", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 2),
        ("2", {"type": ["integer", "string"]}, 2),
        ("two", {"type": ["integer", "string"]}, "two"),
        ("2", {"enum": [1, 2]}, 2),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("5.0", {"type": "number"}, 5),
        ("0.5", {"type": "number"}, 0.5),
        ("NaN", {"type": "number"}, "NaN"),
        ("1e999", {"type": "number"}, "1e999"),
        ("TRUE", {"type": "boolean"}, True),
        ("0", {"type": "boolean"}, False),
        ("yes", {"type": "boolean"}, "yes"),
        ("null", NULLABLE, None),
        ("Null", NULLABLE, None),
        ("None", NULLABLE, "None"),
        ("", NULLABLE, ""),
        ("null", {"type": "string"}, "null"),
        ("null", {}, "null"),
        ("null", {"type": "array"}, None),
        ("None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("['a']", {"type": "array"}, "['a']"),
        ('["a",]', {"type": "array"}, '["a",]'),
        (' ["a"] ', {"type": "array"}, ["a"]),
        ("[1]", {"type": ["array", "string"]}, [1]),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
    ],
)
def test_values_written_as_text_take_the_first_type_of_the_schema_that_they_can_be_read_as(text, schema, value):
    read = to_value(text, schema)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "field",
    [
        {"$ref": "#/$defs/Point"},
        {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]},
        {"allOf": [{"$ref": "#/$defs/Point"}]},
        {"$ref": "#/$defs/Alias"},
    ],
)
def test_qwen3_coder_follows_references_in_the_schema(field):
    definitions = {"Point": {"type": "object"}, "Alias": {"$ref": "#/$defs/Point"}, "Loop": {"$ref": "#/$defs/Loop"}}
    parameters = {"properties": {"p": field, "loop": {"$ref": "#/$defs/Loop"}}, "$defs": definitions}
    parser = PARSERS["qwen3_coder"].for_tools([{"function": {"name": "run", "parameters": parameters}}])
    (call,) = parser.parse('<function=run><parameter=p>{"x": 1}</parameter><parameter=loop>1</parameter></function>')
    assert call.arguments == {"p": {"x": 1}, "loop": "1"}


def test_qwen3_coder_keeps_lines_and_tags_of_a_value():
    code = "if x < 1:\n    print('<tool_call>', '</tool_call>', '<function=f>', '</think>', '<b>')\n\n"
    assert QWEN.parse(QWEN.render(ToolCall("run", {"code": code})))[0].arguments == {"code": code}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (GOOD.removesuffix("</tool_call>"), [{"n": 1}]),
        (GOOD.removeprefix("<tool_call>\n"), [{"n": 1}]),
        (GOOD.replace("</function>\n", ""), [{"n": 1}]),
        (GOOD.removesuffix("\n</function>\n</tool_call>"), [{"n": 1}]),
        (GOOD.replace("<function", "I run <function"), [{"n": 1}]),
        (GOOD.replace("</function>", "</function> so"), [{"n": 1}]),
        ("<tool_call>" + GOOD, [{"n": 1}]),
        (GOOD.replace("</function>", "<parameter=n>2</parameter></function>"), [{"n": 2}]),
        (
            GOOD.replace("</function>", "</function><function=run><parameter=n>2</parameter></function>"),
            [{"n": 1}, {"n": 2}],
        ),
        (GOOD.replace("</tool_call>", "") + GOOD, [{"n": 1}, {"n": 1}]),
        (
            "<tool_call><function=run><parameter=code>\na\n<parameter=n>\n1\n</parameter></function></tool_call>",
            [{"code": "a", "n": 1}],
        ),
        ("<tool_call><function=run>text</function></tool_call>", [{}]),
    ],
)
def test_qwen3_coder_reads_what_lacks_a_tag_as_vllm_does(text, arguments):
    calls = QWEN.parse(text)
    assert [(call.name, call.arguments, call.error) for call in calls] == [("run", given, None) for given in arguments]


@pytest.mark.parametrize(("close", "is_run"), [("", False), ("</think>", True)])
def test_qwen3_coder_does_not_run_a_call_in_a_thought_that_a_tag_of_its_own_precedes(close, is_run):
    (call,) = QWEN.parse(
        f"<tool_call><think>maybe {close}<function=run><parameter=n>1</parameter></function></tool_call>"
    )
    assert (call.error is None) is is_run
    assert call.is_in_thought is not is_run


def test_qwen3_coder_reads_a_call_without_parameters():
    (call,) = QWEN.parse("<tool_call>\n<function=run>\n</function>\n</tool_call>")
    assert (call.name, call.arguments, call.error) == ("run", {}, None)


def test_qwen3_coder_keeps_good_calls_beside_malformed_ones():
    broken = "<tool_call><function=run><parameter=n>1</tool_call>"
    calls = QWEN.parse(GOOD + broken + GOOD + "<tool_call>{}</tool_call>" + GOOD)
    assert [call.error is None for call in calls] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<tool_call>", "cut off or not closed: the tool call has no <function=NAME>"),
        ("<tool_call>{}</tool_call>", "the tool call has no <function=NAME>"),
        ("<tool_call><function=></function></tool_call>", "the function has no name"),
        ("<tool_call><function= ></function></tool_call>", "the function has no name"),
        ("<tool_call><function=run\n<parameter=n>1</parameter></function></tool_call>", "the function has no name"),
        ("<tool_call><function=run><parameter=n>1</function></tool_call>", "parameter 'n' is not closed"),
        ("<tool_call><function=run><parameter=n>1</tool_call>", "parameter 'n' is not closed"),
        ("<tool_call><function=run><parameter=n>1</param", "parameter 'n' is not closed"),
        ("<tool_call><function=run><parameter=n", "parameter 'n' is not closed"),
        ("<tool_call><function=run>", "the tool call is cut off or not closed"),
        ("Write <function=run> around it.", "the tool call is cut off or not closed"),
    ],
)
def test_qwen3_coder_explains_what_is_wrong_with_a_call(text, part):
    (call,) = QWEN.parse(text)
    assert call.error is not None
    assert part in call.error


def test_qwen3_coder_tells_a_call_that_may_have_been_cut():
    cut = GOOD.removesuffix("\n</function>\n</tool_call>")
    texts = (cut, cut + "\n", cut + "</function>", cut + "</tool_call>", GOOD)
    assert [QWEN.parse(text)[0].lacks_end for text in texts] == [True, True, False, False, False]


names = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=8)
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names, st.dictionaries(names, plain, max_size=4)), min_size=1, max_size=3))
def test_qwen3_coder_reads_back_what_it_renders(named_arguments):
    calls = [ToolCall(name, arguments) for name, arguments in named_arguments]
    parser = PARSERS["qwen3_coder"]
    read = parser.parse("I call.\n" + "\n".join(parser.render(call) for call in calls) + "<|im_end|>")
    assert [(call.name, call.arguments, call.error) for call in read] == [(c.name, c.arguments, None) for c in calls]
