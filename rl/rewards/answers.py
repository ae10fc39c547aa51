r"""Finds the final answer in what the model said in its last turn, and brings spellings of short answers together."""

from __future__ import annotations

import re
import unicodedata

from rl.rewards.numbers import is_same_number, read_number
from rl.thoughts import said
from rl.types import Trajectory

_SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|</?s>")
"""Special tokens as Llama, Qwen and DeepSeek write them, and SentencePiece's ends."""
_BOX_PART = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\[\\{}](?!(?:boxed|fbox)\s*\{)|(?P<open>\{)|(?P<close>\})")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀-₎]+")
_FRACTION_CHARACTER = re.compile("[¼-¾⅐-⅞↉]")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—−", "-"),
        **dict.fromkeys("‘’‚′", "'"),
        **dict.fromkeys("“”„″", '"'),
        **{"⁄": "/", "∕": "/", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "√": r"\sqrt "},
        **{"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "°": r"^\circ "},
        **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "},
    }
)
_SPACE_COMMAND = re.compile(r"(?<!\\)\\(?:[,;:> ]|(?:quad|qquad|displaystyle)(?![a-zA-Z]))|~")
_THOUSANDS = re.compile(r"(?<![\d.,_(\[{])\d{1,3}(?:(?P<mark>[, '_])\d{3})(?:(?P=mark)\d{3})*(?![\d/,])")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|mbox|boxed|fbox)\s*\{([^{}]*)\}")
_DELIMITER = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[()\[\]]|\$")
_PUNCTUATION = re.compile(r"\s*([-,;:=+*/^(){}\[\]<>])\s*")
"""What says the same with and without spaces around it: `(1,2)` and `(1, 2)`."""
_WORD = re.compile(r"(?<![A-Za-z\\])(?:[^\W\d_]{3,}|(?:[A-Z][a-z]|NO|AM|PM)(?![A-Za-z]))")


def answer_text(trajectory: Trajectory) -> str:
    """What the model said in its last turn, without special tokens and thoughts: where an answer is looked for."""
    if not trajectory.turns:
        return ""
    return _SPECIAL.sub("", said(trajectory.turns[-1])).strip()


def boxed_answers(text: str) -> list[str]:
    r"""The contents of all complete `\boxed{...}` of a text, in order, nested braces included.

    Args:
        text: Any text. An escaped brace (`\{`) does not nest; a box that never closes does not count.

    Returns:
        Their contents, stripped. A box inside a box is part of the outer one.
    """
    open_braces: list[tuple[bool, int]] = []
    found: list[tuple[int, int]] = []
    for part in _BOX_PART.finditer(text):
        if part["close"] is None:
            if part["box"] or part["open"]:
                open_braces.append((part["box"] is not None, part.end()))
        elif open_braces:
            is_box, start = open_braces.pop()
            while is_box and found and found[-1][0] > start:  # boxes inside this one
                found.pop()
            if is_box:
                found.append((start, part.start()))
    return [text[start:end].strip() for start, end in found]


def last_boxed(trajectory: Trajectory) -> str | None:
    """The content of the last complete box of the last turn; None without one."""
    answers = boxed_answers(answer_text(trajectory))
    return answers[-1] if answers else None


def normalize_unicode(text: str) -> str:
    """NFKC, without characters that show nothing (zero-width spaces, joiners, marks of direction)."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def normalize_math(text: str) -> str:
    r"""Bring the spellings of a piece of LaTeX together, without changing what it says.

    Unicode becomes NFKC, but for raised and lowered characters (`²` is `^{2}`) and fractions (`1½` is `1 1/2`), which
    NFKC would run into the number beside them; signs become commands of LaTeX. Marks of thousands, `\$` and spaces go.

    Args:
        text: For example `1{,}234\,\text{m}²`.

    Returns:
        For example `1234 \text{m}^{2}`.
    """
    for characters, form in ((_RAISED, "^{%s}"), (_LOWERED, "_{%s}"), (_FRACTION_CHARACTER, " %s")):
        text = _in_form(characters, form, text)
    text = normalize_unicode(text).translate(_SIGNS)
    text = text.replace(r"\!", "").replace("{,}", ",").replace(r"\$", "")
    text = " ".join(_SPACE_COMMAND.sub(" ", text).split())
    return _THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text)


def normalize_answer(text: str) -> str:
    r"""Bring two spellings of a short answer together: those of `normalize_math`, `$`, `\text{}`, a full stop, case.

    Case is folded in words. A single letter and a command of LaTeX keep it: `N` is not `n`, nor `\Delta` `\delta`.

    Args:
        text: For example `$1,234.00$.`

    Returns:
        For example `1234`.
    """
    text = _DELIMITER.sub("", _TEXT_COMMAND.sub(r"\1", normalize_math(text)))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text.replace(r"\%", "%"))
    text = _THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), " ".join(text.split()))
    text = text.strip("'\"`* ").removesuffix(".").strip()
    if re.fullmatch(r"[-+]?\d+\.\d*", text):
        text = text.rstrip("0").rstrip(".")
    return _WORD.sub(lambda found: found[0].casefold(), text.removeprefix("+"))


def _in_form(characters: re.Pattern[str], form: str, text: str) -> str:
    return characters.sub(lambda found: form % unicodedata.normalize("NFKC", found[0]), text)


def is_same_answer(answer: str, truth: str) -> bool:
    """Whether two answers are the same text after normalization, or the same number. Empty answers never are."""
    given, wanted = normalize_answer(answer), normalize_answer(truth)
    if not given or not wanted:
        return False
    if _PUNCTUATION.sub(r"\1", given) == _PUNCTUATION.sub(r"\1", wanted):
        return True
    number, expected = read_number(given), read_number(wanted)
    return number is not None and expected is not None and is_same_number(number, expected)
