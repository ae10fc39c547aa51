"""Search-R1 and TRL's TextEnvironment: a call is one text, and the result stands right behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS
from rl.errors import ConfigError
from rl.types import ToolCall


def tool(name: str, schema: dict, description: str = "") -> dict:
    parameters = {"type": "object", "properties": {"q": schema, "k": {"type": "integer"}}, "required": ["q"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SEARCH = PARSERS["search_r1"].for_tools([tool("search", {"type": "array"}), tool("other", {})])
TEXT = PARSERS["text_environment"].for_tools(
    [
        tool("Calculator", {"type": "string", "description": "An expression."}, "Computes."),
        tool("Square", {"type": "integer"}),
    ]
)


def test_search_r1_reads_a_query():
    (call,) = SEARCH.parse("<think>I lack it.</think>\n<search> who wrote it? </search>")
    assert (call.name, call.arguments, call.error) == ("search", {"q": ["who wrote it?"]}, None)
    assert call.raw == " who wrote it? "


def test_search_r1_reads_several_queries_of_one_search():
    (call,) = SEARCH.parse('<search>["a", "b"]</search>')
    assert call.arguments == {"q": ["a", "b"]}
    assert SEARCH.render(call) == '<search> ["a", "b"] </search>'


def test_search_r1_reads_nothing_behind_the_answer():
    assert SEARCH.parse("<answer> use <search> x </search> </answer>") == []
    assert [c.error for c in SEARCH.parse("<search> x </search><answer>")] == [None]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<search> never ended", "the search is cut off or not closed. Write <search> query </search>."),
        ("<search> \n </search>", "the search has no query"),
        ("<search>a<search>", "cut off or not closed"),
    ],
)
def test_search_r1_explains_what_is_wrong_with_a_search(text, part):
    call = SEARCH.parse(text)[0]
    assert call.error is not None
    assert part in call.error


def test_search_r1_keeps_a_good_search_behind_an_unclosed_one():
    calls = SEARCH.parse("<search> a \n<search> b </search>")
    assert [(c.error is None, c.raw) for c in calls] == [(False, " a \n"), (True, " b ")]


def test_search_r1_calls_the_only_tool_or_the_one_named_search():
    assert PARSERS["search_r1"].for_tools([tool("find", {"type": "string"})]).parse("<search>x</search>") == [
        ToolCall("find", {"q": "x"}, "x")
    ]
    with pytest.raises(ConfigError, match="search_r1 calls one tool, got a, b"):
        PARSERS["search_r1"].for_tools([tool("a", {}), tool("b", {})])


def test_text_environment_reads_a_request():
    (call,) = TEXT.parse("13 - 3 is <request><Calculator>13-3<call>")
    assert (call.name, call.arguments, call.error) == ("Calculator", {"q": "13-3"}, None)
    (call,) = TEXT.parse("<request> <Square> 4<call>")
    assert (call.name, call.arguments) == ("Square", {"q": 4})
    (call,) = TEXT.parse("<request><Unknown>4 > 3<call>")
    assert (call.name, call.arguments) == ("Unknown", {"query": "4 > 3"})


def test_text_environment_reads_nothing_behind_the_submission():
    assert TEXT.parse("Result=10<submit><request><Calculator>1<call>") == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<request><Calculator>13-3", "the request is cut off or not closed"),
        ("<request>13-3<call>", "the request names no tool. Write <request><TOOL-NAME>QUERY<call>."),
        ("<request>< >13-3<call>", "the request names no tool"),
    ],
)
def test_text_environment_explains_what_is_wrong_with_a_request(text, part):
    (call,) = TEXT.parse(text)
    assert call.error is not None
    assert part in call.error


def test_text_environment_describes_its_tools():
    assert TEXT.instructions == (
        "You can use these tools:\n"
        "- <request><Calculator>q<call> Computes. An expression.\n"
        "- <request><Square>q<call>\n"
        "The result of a request follows behind <call> and ends with <response>.\n"
        "Write <submit> at the end of your answer.\n\n"
    )


def test_plain_formats_declare_what_stops_and_follows():
    assert (SEARCH.stop, SEARCH.result_format) == (("</search>", "</answer>"), "\n\n<information>{}</information>\n\n")
    assert (TEXT.stop, TEXT.result_format) == (("<call>", "<submit>"), "{}<response>")


values = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1), max_size=3)


@settings(max_examples=300, deadline=None)
@given(values)
def test_text_environment_reads_back_what_it_renders(texts):
    parser = PARSERS["text_environment"].for_tools([tool("Find", {"type": "array"})])
    call = ToolCall("Find", {"q": texts})
    assert parser.parse(parser.render(call))[0].arguments == {"q": texts}
