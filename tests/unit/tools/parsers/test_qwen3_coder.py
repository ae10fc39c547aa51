from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.tools.parsers import PARSERS
from rl.tools.parsers.plain_text import to_value
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
    assert call.raw == "\n<function=run>\n<parameter=n>\n1\n</parameter>\n</function>\n"


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


def test_qwen3_coder_leaves_a_value_that_breaks_its_type_to_the_schema():
    assert to_value("one", {"type": "integer"}) == "one"
    assert to_value("1 2", {"type": "integer"}) == "1 2"
    assert to_value("NaN", {"type": "number"}) == "NaN"
    assert to_value("2", {"anyOf": [{"type": "integer"}, {"type": "null"}]}) == 2


def test_qwen3_coder_keeps_lines_and_tags_of_a_value():
    code = "if x < 1:\n    print('</parameter>', '</function>', '</tool_call>')\n\n"
    assert QWEN.parse(QWEN.render(ToolCall("run", {"code": code})))[0].arguments == {"code": code}


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
        ("<tool_call>", "cut off or not closed: the tool call does not begin with <function=NAME>"),
        ("<tool_call>{}</tool_call>", "the tool call does not begin with <function=NAME>"),
        ("<tool_call><function=></tool_call>", "does not begin with <function=NAME>"),
        ("<tool_call><function= ></function></tool_call>", "the function has no name"),
        ("<tool_call><function=run><parameter=n>1</function></tool_call>", "parameter 'n' is not closed"),
        ("<tool_call><function=run>text</function></tool_call>", "</function> and </tool_call> do not follow"),
        (GOOD.removesuffix("</tool_call>"), "cut off or not closed: </function> and </tool_call> do not follow"),
        (GOOD.removeprefix("<tool_call>\n"), "<function=...> stands outside <tool_call>"),
        (
            GOOD.replace("</function>", "<parameter=n>2</parameter></function>"),
            "parameter 'n' is given twice. Write it once",
        ),
    ],
)
def test_qwen3_coder_explains_what_is_wrong_with_a_call(text, part):
    (call,) = QWEN.parse(text)
    assert call.error is not None
    assert part in call.error


names = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=8)
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names, st.dictionaries(names, plain, max_size=4)), min_size=1, max_size=3))
def test_qwen3_coder_reads_back_what_it_renders(named_arguments):
    calls = [ToolCall(name, arguments) for name, arguments in named_arguments]
    parser = PARSERS["qwen3_coder"]
    read = parser.parse("I call.\n" + "\n".join(parser.render(call) for call in calls) + "<|im_end|>")
    assert [(call.name, call.arguments, call.error) for call in read] == [(c.name, c.arguments, None) for c in calls]
