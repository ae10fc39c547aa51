"""Tool-call parsers: exceptions on a million random turns, calls that are not read back, and speed."""

from __future__ import annotations

import random
import string
import sys
import time
from pathlib import Path
from typing import Any

from rl.chat.parsers import PARSERS, Parser
from rl.types import ToolCall
from tools.bench.figures import Figure, write_json

PIECES = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<function=f>", "</function>", "<parameter=p>"),
    *("</parameter>", "<function=", "<|python_tag|>", "<search>", "</search>", "<answer>", "<request>", "<search"),
    *("<call>", "<submit>", "<response>", "<tool>", "{", "}", "[", ";", '"', '"name"', '{"name":', ":", ","),
    *('"arguments"', '"parameters"', '{"type": "function"', "\\", "\\ud800", "\n", " ", "é", "1e999", "NaN", "-"),
)
"""The parts of random turns: tags of every format, complete and cut, and difficult JSON."""

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Finds documents.",
            "parameters": {
                "type": "object",
                "properties": {"query_list": {"type": "array", "items": {"type": "string"}, "description": "Queries."}},
                "required": ["query_list"],
            },
        },
    }
]

_NUM_TURNS = 1_000_000
_NUM_CALLS = 100_000
_SEED = 7
_LETTERS = string.ascii_letters + string.digits + " .,:;!?'\"\\/()[]{}=+-*_\n\té日🙂"


def measure(num_turns: int = _NUM_TURNS, num_calls: int = _NUM_CALLS) -> list[Figure]:
    """Run every parser on its share of the turns and of the calls.

    Args:
        num_turns: Random turns, for all parsers together.
        num_calls: Random calls to render and read back, for all parsers together.

    Returns:
        The numbers of exceptions and of lost calls, which must be 0, and turns per second of each parser.
    """
    rng = random.Random(_SEED)
    exceptions = lost = 0
    figures = []
    for name, unbound in PARSERS.items():
        parser = unbound.for_tools(TOOLS)
        raised, seconds, num_characters = _read_turns(parser, rng, num_turns // len(PARSERS))
        exceptions += raised
        lost += _lost_calls(parser, rng, num_calls // len(PARSERS))
        turns_per_s = num_turns // len(PARSERS) / seconds
        detail = f"{num_characters / seconds / 1e6:.1f} million characters/s"
        figures.append(Figure(f"parser {name}", turns_per_s, "turns/s", detail=detail))
    return [
        Figure("parser exceptions", exceptions, "", 0, at_least=False, detail=f"{num_turns} random turns"),
        Figure("parser calls not read back", lost, "", 0, at_least=False, detail=f"{num_calls} random calls"),
        *figures,
    ]


def _read_turns(parser: Parser, rng: random.Random, count: int) -> tuple[int, float, int]:
    """Parse random turns; returns the number of exceptions, the seconds, and the number of characters."""
    raised, num_characters, seconds = 0, 0, 0.0
    for _ in range(count):
        pieces = rng.choices(PIECES, k=rng.randrange(30)) + rng.choices(_LETTERS, k=rng.randrange(10))
        rng.shuffle(pieces)
        text = "".join(pieces)
        num_characters += len(text)
        start = time.perf_counter()
        try:
            parser.parse(text)
        except Exception:  # any exception counts
            raised += 1
        seconds += time.perf_counter() - start
    return raised, seconds, num_characters


def _lost_calls(parser: Parser, rng: random.Random, count: int) -> int:
    lost = 0
    for _ in range(count):
        query = "".join(rng.choices(_LETTERS, k=rng.randrange(1, 40))).strip() or "x"
        call = ToolCall("search", {"query_list": [query]})
        read = parser.parse(f"Let me see.\n{parser.render(call)}<|im_end|>")
        lost += [(c.name, c.arguments, c.error) for c in read] != [(call.name, call.arguments, None)]
    return lost


if __name__ == "__main__":
    _, output, *_overrides = sys.argv[1:]
    write_json(measure(), Path(output))
