"""The named values in a text that one of DSPy's adapters wrote, or a model for it.

Clients parse what was sampled and render it again, often in another form. The values stay the same; they tell which
completion is meant.

    ChatAdapter   [[ ## answer ## ]]
                  3
    XMLAdapter    <answer>3</answer>
    JSONAdapter   {"answer": 3}
"""

from __future__ import annotations

import ast
import html
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

_HEADER = re.compile(r"[ \t]*\[\[ ## (\w+) ## \]\]")
_OPEN, _CLOSE = re.compile(r"<(\w+)>"), re.compile(r"</(\w+)>")
_ITEMS = re.compile(r"<item>([^<]*)</item>")
_LONGEST_TEXT = 200_000
"""Longer texts are not searched, characters."""
_LONGEST_LITERAL = 4096

Fields = Mapping[str, str]
"""Values in their canonical form, by field."""


def forms_of(text: str) -> list[Fields]:
    """What each adapter would read in a text, without forms that find nothing."""
    if len(text) > _LONGEST_TEXT:
        return []
    found = ({name: canonical(value) for name, value in form(text).items()} for form in (_chat, _xml, _json))
    return [fields for fields in found if fields]


def canonical(value: Any) -> str:
    """One text for all ways to write a value: `[1, 2]`, `["a"]` and `['a']`, `true` and `True`, `3` and `3.0`."""
    if not isinstance(value, str):
        return _dumped(value)
    text = value.strip()
    if items := _ITEMS.findall(text):
        return _dumped([html.unescape(item) for item in items])
    read = _literal(text)
    return _words(html.unescape(text)) if read is None else _dumped(read)


def _chat(text: str) -> dict[str, str]:
    sections: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            sections.append((header.group(1), [line[header.end() :]]))
        elif sections:
            sections[-1][1].append(line)
    found: dict[str, str] = {}
    for name, lines in sections:
        if name != "completed":
            found.setdefault(name, "\n".join(lines))
    return found


def _xml(text: str) -> dict[str, str]:
    """The outermost elements; an element without an end is none."""
    ends: dict[str, list[int]] = {}
    for tag in _CLOSE.finditer(text):
        ends.setdefault(tag.group(1), []).append(tag.start())
    found: dict[str, str] = {}
    position = 0
    for tag in _OPEN.finditer(text):
        own = ends.get(tag.group(1), [])
        place = bisect_left(own, tag.end())
        if tag.start() >= position and place < len(own):
            found.setdefault(tag.group(1), text[tag.end() : own[place]])
            position = own[place]
    return found


def _json(text: str) -> dict[str, Any]:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return {}
    try:
        value = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _literal(text: str) -> Any:
    """A value that is written as JSON or as Python would write it; None for other text."""
    for read in _readings(text):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _readings(text: str) -> Iterator[Any]:
    yield json.loads
    if len(text) <= _LONGEST_LITERAL and text[:1] in tuple("[{('\"TF"):
        yield ast.literal_eval


def _dumped(value: Any) -> str:
    if isinstance(value, str):
        return _words(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return _words(str(value))


def _words(text: str) -> str:
    return " ".join(text.split())
