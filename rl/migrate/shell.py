"""Reads the `key=value` overrides of a shell script, as the example scripts of verl hold them.

No shell runs. What is understood: lines continued with a backslash, quotes, comments, `NAME=value`, `${NAME}`,
`${NAME:-default}`, `$((arithmetic))` and arrays. Everything else that an override depends on is named as unresolved.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

OVERRIDE = re.compile(r"[+~]{0,2}([A-Za-z_]\w*(?:[.@/][\w@]+)+)=(.*)", re.DOTALL)
"""An override of Hydra for a key within a section."""

_ASSIGNMENT = re.compile(
    r"(?:export\s+|local\s+|declare\s+(?:-\w+\s+)?|readonly\s+)?([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL
)
_ARRAY = re.compile(r"([A-Za-z_]\w*)(\+?)=\((.*)\)\s*", re.DOTALL)
_COMMENT = re.compile(r"(?:^|(?<=\s))#(?=[^\"']*$)[^\n]*")
_ARITHMETIC = re.compile(r"\$\(\((.*?)\)\)(?!\))", re.DOTALL)
_SUBSTITUTION = re.compile(r"\$\((?!\().*?\)|`[^`]*`", re.DOTALL)
_WITH_DEFAULT = re.compile(r"\$\{(\w+):?[-=]((?:[^{}]|\{[^{}]*\})*)\}")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_ALL_ITEMS = re.compile(r"\$\{(\w+)\[[@*]\]\}")
_REST = ("$@", "$*", "${@}", "${@:1}", "${@:2}", "${@:3}")
_BLOCKS = {"if": 1, "case": 1, "for": 1, "while": 1, "fi": -1, "esac": -1, "done": -1}
_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(slots=True)
class Script:
    """The overrides of a script."""

    overrides: list[str] = field(default_factory=list)
    """`key=value`; a variable that is not known stays in the value, as `$NAME`."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the command that begin with `--config`, without the dashes."""
    notes: dict[str, str] = field(default_factory=dict)
    """What could not be resolved, by key or variable."""
    variables: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, list[str]] = field(default_factory=dict)


def read_script(text: str) -> Script:
    """Read a script, or a list of overrides.

    Args:
        text: The whole file.
    """
    script = Script(variables={"HOME": "~", "PWD": "."})
    depth = 0
    for line in _logical_lines(text):
        first = line.split(maxsplit=1)[0]
        depth += _BLOCKS.get(first, 0)
        if (array := _ARRAY.fullmatch(line)) is not None:
            words = _words(script, array[3])
            script.arrays[array[1]] = [*(script.arrays.get(array[1], []) if array[2] else []), *words]
        elif (assignment := _ASSIGNMENT.fullmatch(line)) is not None and not _is_command(assignment[3]):
            _assign(script, assignment[1], assignment[3], is_conditional=depth > 0)
        else:
            for word in _words(script, line):
                _take_word(script, word)
    script.notes = {
        name: note
        for name, note in script.notes.items()
        if not name.startswith("$") or name in _REST or re.search(rf"\$\{{?{name[1:]}\b", text)
    }
    return script


def _logical_lines(text: str) -> list[str]:
    """Lines without comments, continued ones joined, and an array on one line."""
    lines: list[str] = []
    begun = ""
    for raw in text.splitlines():
        line = _COMMENT.sub("", raw).rstrip()
        if not line.strip():
            continue
        begun += line.removesuffix("\\").strip() + " "
        is_array = re.match(r"[A-Za-z_]\w*\+?=\(", begun) is not None and not begun.rstrip().endswith(")")
        is_quoted = re.fullmatch(_ASSIGNMENT.pattern, begun, re.DOTALL) is not None and begun.count('"') % 2 == 1
        if not line.endswith("\\") and not is_array and not is_quoted:
            lines.append(begun.strip())
            begun = ""
    return [*lines, begun.strip()] if begun.strip() else lines


def _is_command(value: str) -> bool:
    """Whether `NAME=value command ...` sets the variable for one command alone."""
    try:
        return len(shlex.split(value)) > 1 and not value.startswith("$((")
    except ValueError:
        return False


def _assign(script: Script, name: str, value: str, *, is_conditional: bool) -> None:
    words = [value] if value.startswith("$((") else _split(value)
    script.variables[name] = _expanded(script, words[0]) if words else ""
    if is_conditional:
        script.notes[f"${name}"] = f"Is set under a condition in the script; taken as {script.variables[name]!r:.60}."


def _words(script: Script, line: str) -> list[str]:
    words: list[str] = []
    for word in _split(line):
        if (array := _ALL_ITEMS.fullmatch(word)) is not None and array[1] in script.arrays:
            words += script.arrays[array[1]]
        elif _VARIABLE.fullmatch(word) is not None:
            words += _expanded(script, word).split()
        else:
            words.append(_expanded(script, word))
    return words


def _split(line: str) -> list[str]:
    """Words without their quotes; `$((...))` and `$(...)` are each one word."""
    parts = re.split(r"(\$\(\(.*?\)\)(?!\))|\$\([^()]*\))", line)
    kept = [f"$ARITHMETIC{number}$" if number % 2 else part for number, part in enumerate(parts)]
    try:
        words = shlex.split("".join(kept))
    except ValueError:
        words = "".join(kept).split()
    return [re.sub(r"\$ARITHMETIC(\d+)\$", lambda found: parts[int(found[1])], word) for word in words]


def _expanded(script: Script, word: str) -> str:
    """Replace variables and arithmetic as far as they are known."""
    for _ in range(8):  # defaults and values may hold variables
        before = word
        word = word.replace("$(pwd)", ".")
        word = _ARITHMETIC.sub(lambda found: _arithmetic(script, found[1], found[0]), word)
        word = _WITH_DEFAULT.sub(lambda found: script.variables.get(found[1]) or found[2].strip("\"'"), word)
        word = _VARIABLE.sub(lambda found: script.variables.get(found[1] or found[2], found[0]), word)
        if word == before:
            break
    return word


def _arithmetic(script: Script, expression: str, original: str) -> str:
    named = _expanded(script, expression)
    named = re.sub(r"[A-Za-z_]\w*", lambda found: script.variables.get(found[0], found[0]), named)
    try:
        return str(_calculate(ast.parse(named.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return original


def _calculate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_calculate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_calculate(node.left), _calculate(node.right))
    raise ValueError(f"arithmetic with {type(node).__name__}")


def _take_word(script: Script, word: str) -> None:
    if word.startswith("--config"):
        name, _, value = word.removeprefix("--").partition("=")
        script.options[name] = value
    elif (found := OVERRIDE.fullmatch(word)) is not None:
        unknown = [match[0] for match in (*_VARIABLE.finditer(found[2]), *_SUBSTITUTION.finditer(found[2]))]
        if unknown and not re.match(r"\$\{(oc\.|\.|\w+\.)", found[2]):
            script.notes[found[1]] = f"{', '.join(unknown)} is not set in the script. Write the value."
            word = _VARIABLE.sub(lambda match: f"${match[1] or match[2]}", word)
        script.overrides.append(word)
    elif word in _REST:
        script.notes["$@"] = "Arguments that the script is called with are not in the file: add them by hand."
