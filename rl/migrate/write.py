"""Writes a converted configuration as YAML with comments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from rl.config.keys import key_paths
from rl.migrate.draft import Draft, Line
from rl.migrate.summary import short_names

_WIDTH = 120


def yaml_text(draft: Draft, source: str) -> str:
    """The configuration with a comment beside every line whose meaning changed.

    Args:
        draft: A finished conversion.
        source: Name of the file that it came from.
    """
    lines = [f"# {source}, converted from {draft.framework} by `rl migrate`."]
    for part, names in draft.missing.items():
        asked = f" ({short_names(names, draft.given)})" if names else ""
        lines.append(_comment(f"Missing here: {part}{asked}."))
    for name, advice in draft.by_hand.items():
        lines.append(_comment(f"Needs a hand: {name}: {advice}"))
    if draft.model:
        lines += ["", "defaults:", f"  - model: {draft.model}", "  - _self_"]
    return "\n".join([*lines, "", *_sections(draft)]) + "\n"


def value_text(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _sections(draft: Draft) -> Iterator[str]:
    """The lines in the order of the schema; keys that it does not have come last in their section."""
    lines = draft.lines | draft.refused
    order = {path: number for number, path in enumerate(key_paths(draft.root))}
    sections = list(dict.fromkeys(path.split(".")[0] for path in (*order, *lines)))
    paths = sorted(lines, key=lambda path: (sections.index(path.split(".")[0]), order.get(path, len(order))))
    open_sections: list[str] = []
    for path in paths:
        *names, key = path.split(".")
        shared = 0
        while shared < min(len(names), len(open_sections)) and names[shared] == open_sections[shared]:
            shared += 1
        for depth in range(shared, len(names)):
            yield f"{'  ' * depth}{names[depth]}:"
        open_sections = names
        yield from _key_lines("  " * len(names), key, lines[path])


def _key_lines(indent: str, key: str, line: Line) -> Iterator[str]:
    """`key: value  # comment`; a mapping has a line for each of its entries."""
    comment = f"  # {_one_line(line.comment)}" if line.comment else ""
    if isinstance(line.value, dict) and line.value:
        yield f"{indent}{key}:{comment}"
        for text in yaml.safe_dump(line.value, sort_keys=False, allow_unicode=True, width=10_000).splitlines():
            yield f"{indent}  {text}"
    else:
        yield f"{indent}{key}: {value_text(line.value)}{comment}"


def _comment(text: str) -> str:
    return f"# {_one_line(text)}"


def _one_line(text: str) -> str:
    """Text without line ends and other control characters, which would end a comment."""
    return " ".join(json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\n", " ").split())
