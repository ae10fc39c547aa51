r"""Equality of two answers as mathematics: numbers with units by `rl.rewards.numbers`, the rest by math-verify."""

from __future__ import annotations

import re
from typing import Any

from rl.rewards.answers import is_same_answer, normalize_answer, normalize_math
from rl.rewards.numbers import read_number

_NO_TIMEOUT = None  # math-verify's own time-outs need the main thread's signals; the caller has a deadline
_MARKED = re.compile(r"\\boxed|\$|\\\(|\\\[")
_WORD = re.compile(r"\\(?:text|mathrm|mbox)(?![A-Za-z])|(?<![\\A-Za-z])[A-Za-z]{3,}")
_BARE_RELATION = re.compile(r"\s*(?:[<>≤≥≠]|\\(?:le|ge|lt|gt|ne)(?:q|qslant)?(?![A-Za-z]))")
"""A relation without a left side, which math-verify takes for the number alone: `\\geq 5` for `5`."""
_SYMBOL = re.compile(r"\\[A-Za-z]+|[A-Za-z]")


def is_equal(answer: str, truth: str) -> bool:
    r"""Whether an answer is the true one.

    Args:
        answer: The content of a box, or a text in which math-verify looks for the answer.
        truth: LaTeX or plain.

    Returns:
        True for the same text or number, and for what math-verify finds equal, unless symbols differ in case:
        math-verify takes `N` and `n`, `\Delta` and `\delta` for one symbol.

    Source: the math-verify library.
    """
    if is_same_answer(answer, truth):
        return True
    if not answer.strip() or not truth.strip():
        return False
    given, wanted = read_number(normalize_answer(answer)), read_number(normalize_answer(truth))
    if given and wanted and (given.unit or wanted.unit or given.is_percent or wanted.is_percent):
        return False  # math-verify does not look at units
    from math_verify import verify  # loads sympy; only runs with such rewards pay it

    gold, found = _parse(truth), _parse(answer)
    return bool(verify(gold, found, timeout_seconds=_NO_TIMEOUT)) and not _differ_in_case(_text(gold), _text(found))


def _parse(text: str) -> list[Any]:
    """What math-verify reads: an expression, if it is one, and the text it was read from."""
    from math_verify import parse

    lines = [normalize_math(line) for line in text.strip().splitlines()]
    if len(lines) == 1 and _BARE_RELATION.match(lines[0]):
        lines[0] = f"x {lines[0]}"
    if len(lines) == 1 and _MARKED.search(text) is None and (found := _read(f"${lines[0]}$", parse)):
        return found
    return _read("\n".join(lines), parse)


def _read(text: str, parse: Any) -> list[Any]:
    found: list[Any] = parse(text, parsing_timeout=_NO_TIMEOUT)
    return found


def _text(parsed: list[Any]) -> str:
    return next((part for part in reversed(parsed) if isinstance(part, str)), "")


def _differ_in_case(first: str, second: str) -> bool:
    """Whether some symbol stands in each text in another case, and not in the other's; words are not symbols."""
    symbols = [set(_SYMBOL.findall(_WORD.sub(" ", text))) for text in (first, second)]
    only_first, only_second = symbols[0] - symbols[1], symbols[1] - symbols[0]
    return not {s.lower() for s in only_first}.isdisjoint(s.lower() for s in only_second)
