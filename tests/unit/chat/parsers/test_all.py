"""What holds for every parser: no text makes it raise, calls come back as written, mistakes stay where they are."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rl.chat.parsers import PARSERS, check_parser_name, load_parser
from rl.errors import ConfigError
from rl.thoughts import is_thinking
from rl.types import ToolCall
from tools.bench.parsers import PIECES, TOOLS, measure

BOUND = {name: parser.for_tools(TOOLS) for name, parser in PARSERS.items()}
ONE_PER_TURN = ("search_r1", "text_environment")

texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=20)
queries = words.map(str.strip).filter(lambda q: bool(q) and not q.startswith("["))


def call(query: str) -> ToolCall:
    return ToolCall("search", {"query_list": [query]})


def outcome(calls: list[ToolCall]) -> list[tuple[str, dict, bool]]:
    return [(c.name, c.arguments, c.error is None) for c in calls]


def good(*queries: str) -> list[tuple[str, dict, bool]]:
    return [("search", {"query_list": [query]}, True) for query in queries]


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=600, deadline=None)
@given(text=texts)
def test_parsers_read_any_text_without_raising(name: str, text: str) -> None:
    for parser in (PARSERS[name], BOUND[name]):
        for read in parser.parse(text):
            assert (read.error is None) <= bool(read.name)
            assert read.error is None or (read.error.endswith(".") and read.arguments == {})
            json.dumps(read.arguments, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=200, deadline=None)
@given(query=queries, before=words, after=words)
def test_parsers_read_back_what_they_render(name: str, query: str, before: str, after: str) -> None:
    assume("{" not in before + after)
    text = f"{before}{BOUND[name].render(call(query))}{after}"
    assert outcome(BOUND[name].parse(text)) == good(query)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=200, deadline=None)
@given(query=queries, data=st.data())
def test_parsers_run_a_truncated_call_only_with_all_that_was_written(
    name: str, query: str, data: st.DataObject
) -> None:
    text = BOUND[name].render(call(query)) or ""
    length = data.draw(st.integers(len("<tool_call>"), len(text) - 1))
    read = BOUND[name].parse(text[:length])
    assert len(read) == 1 or name == "llama3_json"  # where an object that has only a name is no call
    assert all(c.error is not None or outcome([c]) == good(query) for c in read)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=200, deadline=None)
@given(broken=texts)
def test_parsers_keep_good_calls_behind_malformed_ones(name: str, broken: str) -> None:
    parser = BOUND[name]
    assume(not is_thinking(broken) and "</think>" not in broken and broken.count('"') % 2 == 0)
    assume(not any(tag in broken for tag in ("<answer>", "<submit>")))
    rendered = parser.render(call("x")) or ""
    first = parser.parse(f"{rendered}\n{broken}")
    assert outcome(first[:1]) == good("x")
    assert outcome(parser.parse(f"{broken}\n{rendered}\n{rendered}")[-1:]) == good("x")


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_take_no_call_out_of_a_thought(name: str) -> None:
    parser = BOUND[name]
    thought, said = parser.render(call("thought")), parser.render(call("said"))
    assert parser.parse(f"<think>{thought}</think>none") == []
    assert outcome(parser.parse(f"<think>{thought}</think>{said}")) == good("said")
    assert outcome(parser.parse(f"opened by the prompt {thought}</think>\n{said}")) == good("said")


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_refuse_the_first_call_of_a_thought_that_is_not_closed(name: str) -> None:
    parser = PARSERS[name].for_tools(TOOLS)
    one, two = parser.render(call("one")), parser.render(call("two"))
    (refused,) = parser.parse(f"<think>never closed {one} and {two}")
    assert (refused.is_in_thought, refused.arguments) == (True, {})
    assert refused.error == (
        "the call was not run, because it stands in a thought that is not closed. Write </think> before a call."
    )
    first, second = parser.parse(f"{one}\nThe tag <think> opens a thought.\n{two}")
    assert (first.error, second.is_in_thought) == (None, True)
    assert parser.parse("<think>never closed, without a call") == []


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
def test_json_parsers_leave_their_tags_inside_a_value_to_it(name: str) -> None:
    code = 'print("</tool_call></think><think>", {"name": "f", "parameters": {}}, "</parameter>")'
    made = ToolCall("run", {"code": code})
    assert outcome(PARSERS[name].parse(PARSERS[name].render(made) or "")) == [("run", {"code": code}, True)]


HOSTILE = (
    *PIECES,
    *('{"name": [', '{"name": {', '{"a":', '{"a": 1, ', "{x,", '{"', '{"\\"', "\\", '{"name": "', '{"name": oops, '),
    *('<tool_call>{"a": "', '<tool_call>{"', "<tool_call>[", "<tool_call>{'", '<tool_call>{"name": "f", "arguments": '),
    *("<tool_call> <function=f><parameter=p>", "<tool_call> ", "<function=f> ", "<parameter=", "<parameter=p>x"),
    *("<request><a>", "<request> <", "<search> ", "<think> ", "</think> ", "<|python_tag|>\n", "<|python_tag|>print "),
)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("head", ["", "<function=f>", "<think>"])
def test_parsers_take_time_in_proportion_to_hostile_text(name: str, head: str) -> None:
    """Eight times the text takes about eight times the time; with the square of its length it would take 64 times."""
    for part in HOSTILE:
        tries = ((_seconds(name, head + part * 1_250), _seconds(name, head + part * 10_000)) for _ in range(3))
        assert any(long < 20 * short + 0.05 for short, long in tries), part


def _seconds(name: str, text: str) -> float:
    """Processor time."""
    start = time.process_time()
    BOUND[name].parse(text)
    return time.process_time() - start


def test_parsers_declare_what_a_run_needs() -> None:
    inline = {name for name, parser in BOUND.items() if parser.result_format is not None}
    assert inline == {name for name, parser in BOUND.items() if parser.stop} == set(ONE_PER_TURN)
    assert {name for name, parser in BOUND.items() if parser.instructions is not None} == set(ONE_PER_TURN)
    for name in ONE_PER_TURN:
        assert (BOUND[name].result_format or "").count("{}") == 1
        assert (BOUND[name].render(call("x")) or "").endswith(BOUND[name].stop[0])


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
def test_json_parsers_need_no_tools(name: str) -> None:
    assert load_parser(name, TOOLS, None) is PARSERS[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hermees", "Did you mean 'hermes'?"),
        ("vlm:hermes", "Known: hermes, llama3_json, qwen3_coder, search_r1, text_environment, vllm:<name>."),
        ("vllm", "unknown name 'vllm'"),
    ],
)
def test_check_parser_name_lists_the_choices(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^rl_config\.tool_parser_format: unknown name") as raised:
        check_parser_name(name)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ONE_PER_TURN)
def test_plain_text_parsers_refuse_a_tool_that_takes_more(name: str) -> None:
    function = TOOLS[0]["function"] | {
        "parameters": {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    }
    with pytest.raises(ConfigError, match=f"{name} gives a tool one text, but 'search' takes a, b"):
        PARSERS[name].for_tools([{"type": "function", "function": function}])
    with pytest.raises(ConfigError, match="takes nothing"):
        PARSERS[name].for_tools([{"type": "function", "function": {"name": "search"}}])


def test_bench_counts_exceptions_and_lost_calls() -> None:
    exceptions, lost, *speeds = measure(num_turns=2000, num_calls=1000)
    assert (exceptions.value, exceptions.is_reached, lost.value, lost.is_reached) == (0, True, 0, True)
    assert [figure.name for figure in speeds] == [f"parser {name}" for name in PARSERS]
