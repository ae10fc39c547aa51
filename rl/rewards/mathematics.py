r"""Mathematical equality of two answers: `rl.rewards.numbers` compares numbers with units, math-verify the rest."""

from __future__ import annotations

import re
from typing import Any

from rl.rewards.answers import is_same_answer, normalize_answer, normalize_math
from rl.rewards.numbers import read_number

_NO_TIMEOUT = None  # math-verify's timeouts need signals in the main thread; the caller has a deadline instead
_MARKED = re.compile(r"\\boxed|\$|\\\(|\\\[")
_WORD = re.compile(r"\\(?:text|mathrm|mbox)(?![A-Za-z])|(?<![\\A-Za-z])[A-Za-z]{3,}")
_BARE_RELATION = re.compile(r"\s*(?:[<>≤≥≠]|\\(?:le|ge|lt|gt|ne)(?:q|qslant)?(?![A-Za-z]))")
"""A relation without a left side. math-verify would drop the relation and read `\\geq 5` as `5`."""
_SYMBOL = re.compile(r"\\[A-Za-z]+|[A-Za-z]")


def is_equal(answer: str, truth: str) -> bool:
    r"""Whether an answer equals the ground truth.

    Args:
        answer: Content of a box, or a text from which math-verify extracts the answer.
        truth: LaTeX or plain text.

    Returns:
        True for the same text or number, or if math-verify finds them equal and no symbol differs in case. math-verify
        ignores case: `N` and `n`, or `\Delta` and `\delta`, are one symbol for it.

    Source: the math-verify library.
    """
    if is_same_answer(answer, truth):
        return True
    if not answer.strip() or not truth.strip():
        return False
    given, wanted = read_number(normalize_answer(answer)), read_number(normalize_answer(truth))
    if given and wanted and (given.unit or wanted.unit or given.is_percent or wanted.is_percent):
        return False  # math-verify ignores units
    from math_verify import verify  # imported here because it loads sympy

    gold, found = _parse(truth), _parse(answer)
    return bool(verify(gold, found, timeout_seconds=_NO_TIMEOUT)) and not _differ_in_case(_text(gold), _text(found))


def _parse(text: str) -> list[Any]:
    """Parse with math-verify: the expression, if there is one, and its text."""
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
    """Whether a symbol has one case in the first text and the other case in the second; words do not count."""
    symbols = [set(_SYMBOL.findall(_WORD.sub(" ", text))) for text in (first, second)]
    only_first, only_second = symbols[0] - symbols[1], symbols[1] - symbols[0]
    return not {s.lower() for s in only_first}.isdisjoint(s.lower() for s in only_second)
