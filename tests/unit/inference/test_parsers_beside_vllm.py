"""Our parsers agree with vLLM's, except for the differences listed in docs/parsers.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import load_tokenizer
from rl.inference.vllm_parsers import VllmParser, load_adapted
from rl.types import ToolCall
from tests.tiny import make_tiny_tokenizer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "parsers.md"
FIELDS = {
    "code": {"type": "string"},
    "n": {"type": "integer"},
    "x": {"type": "number"},
    "maybe": {"type": ["integer", "null"]},
    "note": {"type": ["string", "null"]},
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
FORMATS = ("hermes", "qwen3_coder", "llama3_json")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(rf"\| `({'|'.join(FORMATS)})` \| .* \| .* \| .* \| .* \| .* \|$", line)
]

CALL = "<tool_call>\n<function=run>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>"
JSON_CALL = '{"name": "run", "arguments": {"n": 1}}'
HERMES = f"<tool_call>\n{JSON_CALL}\n</tool_call>"
LLAMA = '{"name": "run", "parameters": {"n": 1}}'


def parameter(name: str, text: str) -> str:
    return CALL.replace("=n>", f"={name}>").replace("\n1\n", f"\n{text}\n")


ALIKE: list[tuple[str, str, list[dict[str, object]]]] = [
    ("hermes", HERMES, [{"n": 1}]),
    ("hermes", f"First\n{HERMES}\nthen\n{HERMES} done", [{"n": 1}, {"n": 1}]),
    ("hermes", f"<tool_call>{JSON_CALL}</tool_call>", [{"n": 1}]),
    ("hermes", f"<tool_call>{JSON_CALL}", [{"n": 1}]),
    ("hermes", f"{HERMES}<tool_call>{JSON_CALL}\n", [{"n": 1}, {"n": 1}]),
    ("hermes", f"{HERMES}</tool_call>", [{"n": 1}]),
    ("hermes", HERMES.replace('"n": 1', '"n": 2, "n": 1'), [{"n": 1}]),
    ("hermes", HERMES.replace('"n": 1', r'"code": "\u00e9\ud83d\ude42<tool_call>"'), [{"code": "é🙂<tool_call>"}]),
    ("hermes", HERMES.replace('"n": 1', '"n": "1"'), [{"n": "1"}]),
    ("hermes", JSON_CALL, []),
    ("hermes", "No call.", []),
    ("qwen3_coder", CALL, [{"n": 1}]),
    ("qwen3_coder", f"First\n{CALL}\nthen\n{CALL} done", [{"n": 1}, {"n": 1}]),
    ("qwen3_coder", CALL.removeprefix("<tool_call>\n"), [{"n": 1}]),
    ("qwen3_coder", CALL.removesuffix("</tool_call>"), [{"n": 1}]),
    ("qwen3_coder", CALL.replace("</function>\n", ""), [{"n": 1}]),
    ("qwen3_coder", CALL.removesuffix("\n</function>\n</tool_call>"), [{"n": 1}]),
    ("qwen3_coder", CALL.replace("</tool_call>", "") + CALL, [{"n": 1}, {"n": 1}]),
    ("qwen3_coder", f"<tool_call>{CALL}", [{"n": 1}]),
    ("qwen3_coder", CALL.replace("<function", "so <function").replace("</function>", "</function> so"), [{"n": 1}]),
    ("qwen3_coder", CALL.replace("<parameter", "<parameter=code>\na\n<parameter"), [{"code": "a", "n": 1}]),
    ("qwen3_coder", CALL.replace("</function>", "<parameter=n>2</parameter></function>"), [{"n": 2}]),
    ("qwen3_coder", CALL.replace("</function>", "</function><function=run></function>"), [{"n": 1}, {}]),
    ("qwen3_coder", "<tool_call><function=run>text</function></tool_call>", [{}]),
    ("qwen3_coder", "<tool_call><function= run ></function></tool_call>", [{}]),
    ("qwen3_coder", parameter("code", "a </parameter> b"), [{"code": "a "}]),
    ("qwen3_coder", parameter("code", "a <parameter=n> 2"), [{"code": "a ", "n": 2}]),
    ("qwen3_coder", parameter("code", "<tool_call></tool_call><function=f></think>"), [
        {"code": "<tool_call></tool_call><function=f></think>"}
    ]),
    *(
        ("qwen3_coder", parameter(name, text), [{name: value}])
        for name, text, value in [
            *[("code", "5", "5"), ("code", " a ", " a "), ("code", "None", "None"), ("new", "5", "5")],
            *[("n", " 2", 2), ("n", "+2", 2), ("n", "2.0", 2.0), ("n", "two", "two"), ("n", "", "")],
            *[("n", "null", None), ("maybe", "null", None), ("maybe", "3", 3)],
            *[("x", "5.0", 5), ("x", "1e3", 1000), ("x", "nan", "nan"), ("x", "1e999", "1e999"), ("x", "0.5", 0.5)],
            *[("note", "null", None), ("note", "NULL", None), ("note", "None", "None")],
            *[("flag", "TRUE", True), ("flag", " false ", False), ("flag", "0", False), ("flag", "yes", "yes")],
            *[("items", '["a", 1]', ["a", 1]), ("items", '["a",]', '["a",]'), ("items", "a, b", "a, b")],
            ("items", "[NaN]", "[NaN]"),
        ]
    ),
    ("llama3_json", LLAMA, [{"n": 1}]),
    ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}\n{LLAMA}", [{"n": 1}] * 3),
    ("llama3_json", f"[{LLAMA}, {LLAMA}]", [{"n": 1}] * 2),
    ("llama3_json", f"<|python_tag|>[{LLAMA}, {LLAMA}]", [{"n": 1}] * 2),
    ("llama3_json", f"I run {LLAMA} now.", [{"n": 1}]),
    ("llama3_json", JSON_CALL, [{"n": 1}]),
    ("llama3_json", '{"id": 7, "name": "run", "parameters": {"n": 2}, "arguments": {"n": 1}}', [{"n": 1}]),
    ("llama3_json", f'{{"tool": {LLAMA}}}', []),
    ("llama3_json", '{"name": "Alice", "age": 3}', []),
    ("llama3_json", '{"answer": 5}', []),
    ("llama3_json", r"\boxed{5}", []),
    ("llama3_json", '{"parameters": {"n": 1}}', []),
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VllmParser]:
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<|python_tag|>"])
    return {name: load_adapted(name, [TOOL], tokenizer) for name in FORMATS}


def read_by_vllm(parser: VllmParser, text: str) -> list[str]:
    """Arguments of the calls that vLLM finds."""
    found = parser._new_parser().extract_tool_calls(text, parser._request).tool_calls
    return [call.function.arguments for call in found]


def read_by_us(name: str, text: str) -> list[ToolCall]:
    return PARSERS[name].for_tools([TOOL]).parse(text)


def as_cell(arguments: list[str]) -> str:
    return ", ".join(arguments) or "-"


def normal(cell: str) -> str:
    """Normalize the JSON in a table cell."""
    pieces = [] if cell == "-" else re.split(r", (?=`|error)", cell)
    written = [p if p == "error" else json.dumps(json.loads(p.strip("`"))) for p in pieces]
    return as_cell(written)


@pytest.mark.parametrize(("name", "text", "arguments"), ALIKE, ids=range(len(ALIKE)))
def test_our_parsers_read_what_vllm_reads(
    theirs: dict[str, VllmParser], name: str, text: str, arguments: list[dict[str, object]]
) -> None:
    calls = read_by_us(name, text)
    assert [(call.arguments, call.error) for call in calls] == [(given, None) for given in arguments]
    assert [json.loads(given) for given in read_by_vllm(theirs[name], text)] == arguments


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_docs_say_where_our_parsers_differ_from_vllm(theirs: dict[str, VllmParser], row: list[str]) -> None:
    name = row[0].strip("`")
    text = row[1][1:-1].replace(r"\|", "|").replace(r"\n", "\n")
    calls = read_by_us(name, text)
    ours = as_cell([json.dumps(call.arguments) if call.error is None else "error" for call in calls])
    vllm = as_cell([json.dumps(json.loads(given)) for given in read_by_vllm(theirs[name], text)])
    assert (ours, vllm) == (normal(row[2]), normal(row[3]))
    assert len({ours, vllm, normal(row[4])}) > 1, "the row shows no difference"


def test_docs_compare_every_format_that_vllm_has_too() -> None:
    assert {row[0].strip("`") for row in ROWS} == set(FORMATS)
    assert len(ROWS) >= 25
