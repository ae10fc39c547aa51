r"""Finds the final answer in the model's own text of the last turn: the content of `\boxed{...}`."""

from __future__ import annotations

import re

from rl.types import Trajectory

_SPECIAL = re.compile(r"<\|[a-zA-Z0-9_]+\|>")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")


def answer_text(trajectory: Trajectory) -> str:
    """The last turn's text without special tokens and without its thoughts, where an answer is looked for."""
    text = _SPECIAL.sub("", trajectory.response_text)
    return text.rpartition("</think>")[2].strip()


def boxed_answers(text: str) -> list[str]:
    r"""The contents of all complete `\boxed{...}` of a text, in order, nested braces included.

    Args:
        text: Any text. An escaped brace (`\{`) does not nest; a box that never closes does not count.

    Returns:
        Their contents, stripped. A box inside a box is part of the outer one.
    """
    answers: list[str] = []
    position = 0
    while (opening := _BOXED.search(text, position)) is not None:
        end = _closing_brace(text, opening.end())
        if end is None:
            position = opening.end()
            continue
        answers.append(text[opening.end() : end].strip())
        position = end + 1
    return answers


def last_boxed(trajectory: Trajectory) -> str | None:
    """The content of the last complete box of the last turn; None without one."""
    answers = boxed_answers(answer_text(trajectory))
    return answers[-1] if answers else None


def normalize_answer(text: str) -> str:
    r"""Bring two spellings of a short answer together: quotes, `$`, `\text{}`, thousands separators, a final full stop.

    Args:
        text: For example `$1,234.00$.`

    Returns:
        For example `1234`; letters in lower case, white space collapsed.
    """
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text.strip())
    text = text.replace("\\$", "").replace("$", "").replace("\\!", "").replace("\\,", "").replace("−", "-")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = " ".join(text.split()).strip("'\"` ").removesuffix(".").strip().lower()
    if re.fullmatch(r"[-+]?\d+\.\d*", text):
        text = text.rstrip("0").rstrip(".")
    return text.removeprefix("+")


def _closing_brace(text: str, position: int) -> int | None:
    depth = 1
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None
