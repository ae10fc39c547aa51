"""Text and tables for a terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except line break and tab, marks of writing direction, and halves of surrogate pairs."""
_PICTURES, _DELETE = 0x2400, 0x7F
_WIDEST = 1000


def visible(text: str) -> str:
    r"""Replace each character that would steer a terminal by a visible one; line breaks and tabs stay.

    Example: an escape code `\x1b[31m` becomes `␛[31m`.
    """
    return _UNSAFE.sub(lambda found: _picture(ord(found[0])), text)


def print_table(table: Table, target: Console) -> None:
    """Print a table as wide as its contents, also beyond the terminal's edge: a number that is cut off says nothing."""
    table.width = target.measure(table, options=target.options.update(max_width=_WIDEST)).maximum
    target.print(table, crop=False)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(_PICTURES + code)
    return "␡" if code == _DELETE else "␦"
