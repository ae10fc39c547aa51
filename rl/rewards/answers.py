r"""Extraction of the final answer from the last turn, and normalization of short answers."""

from __future__ import annotations

import re
import unicodedata

from rl.rewards.numbers import is_same_number, read_number
from rl.thoughts import said
from rl.types import Trajectory

_SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|</?s>")
"""Special tokens of Llama, Qwen and DeepSeek, and SentencePiece's begin and end tokens."""
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
"""Spaces around these characters have no meaning: `(1,2)` equals `(1, 2)`."""
_WORD = re.compile(r"(?<![A-Za-z\\])(?:[^\W\d_]{3,}|(?:[A-Z][a-z]|NO|AM|PM)(?![A-Za-z]))")


def answer_text(trajectory: Trajectory) -> str:
    """Text of the last turn without special tokens and thoughts; answers are extracted from it."""
    if not trajectory.turns:
        return ""
    return without_special_tokens(said(trajectory.turns[-1])).strip()


def without_special_tokens(text: str) -> str:
    """Remove the special tokens of the usual tokenizers from a generated text."""
    return _SPECIAL.sub("", text)


def boxed_answers(text: str) -> list[str]:
    r"""Find the contents of all complete `\boxed{...}` in a text, in order.

    Args:
        text: Any text. Braces may nest; escaped braces (`\{`) do not count. A box that never closes is ignored.

    Returns:
        The stripped contents. A box inside a box is part of the outer one.
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
    """Content of the last complete box of the last turn, or None."""
    answers = boxed_answers(answer_text(trajectory))
    return answers[-1] if answers else None


def marked_answer(trajectory: Trajectory) -> str | None:
    r"""The last `\boxed{...}` of the last turn, otherwise the content of its last `<answer>...</answer>`, or None."""
    boxed = last_boxed(trajectory)
    if boxed is not None:
        return boxed
    before, closing, _ = answer_text(trajectory).rpartition("</answer>")
    _, opening, inside = before.rpartition("<answer>")
    return inside.partition("</answer>")[0] if opening and closing else None


def voted_answer(trajectory: Trajectory) -> str:
    """The answer of a scored trajectory in a majority vote, normalized so that equal answers are equal texts.

    It is the `answer` (or verl's `pred`) that the first reward function returned, otherwise the marked answer, and
    without one the last line of the last turn.

    Args:
        trajectory: After scoring.

    Returns:
        The answer; empty if there is none.
    """
    first = next(iter(trajectory.rewards), "")
    for key in (f"{first}/answer", f"{first}/pred"):
        given = trajectory.reward_texts.get(key, trajectory.rewards.get(key))
        if given is not None:
            return normalize_answer(str(given))
    answer = marked_answer(trajectory)
    if answer is None:
        answer = next(reversed(answer_text(trajectory).splitlines()), "")
    return normalize_answer(answer)


def normalize_unicode(text: str) -> str:
    """Apply NFKC and remove invisible characters (zero-width spaces, joiners, direction marks)."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def normalize_math(text: str) -> str:
    r"""Normalize the spelling of a piece of LaTeX without changing its meaning.

    Applies NFKC, except to superscripts and subscripts (`²` becomes `^{2}`) and fractions (`1½` becomes `1 1/2`), which
    NFKC would merge with the adjacent number. Signs become LaTeX commands. Thousands separators, `\$` and extra spaces
    are removed.

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
    r"""Normalize a short answer: as `normalize_math`, and also `$`, `\text{}`, a final period and the case of words.

    Single letters and LaTeX commands keep their case: `N` differs from `n`, and `\Delta` from `\delta`.

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
    """Whether two answers are the same text after normalization, or the same number. Empty answers never match."""
    given, wanted = normalize_answer(answer), normalize_answer(truth)
    if not given or not wanted:
        return False
    if _PUNCTUATION.sub(r"\1", given) == _PUNCTUATION.sub(r"\1", wanted):
        return True
    number, expected = read_number(given), read_number(wanted)
    return number is not None and expected is not None and is_same_number(number, expected)
