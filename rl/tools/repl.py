"""Makes a program show the value of its last expression, as Python's prompt does, and changes nothing else."""

from __future__ import annotations

import ast
import re
import warnings

_BEFORE, _AFTER = '__import__("sys").displayhook((', "))"


def show_last_expression(code: str) -> str:
    """If the last statement is an expression, pass its value to `sys.displayhook`, which prints it unless None.

    The expression is wrapped in place, so line numbers stay the same. Code is returned unchanged if it does not
    compile, or if wrapping would change its meaning otherwise.
    """
    before = _parse(code)
    if before is None or not before.body or not isinstance(before.body[-1], ast.Expr):
        return code
    last = before.body[-1]
    wrapped = _wrap(code, last)
    after = _parse(wrapped) if wrapped is not None else None
    if wrapped is None or after is None or not _is_same_but_shown(before, after):
        return code
    return wrapped


def strip_display(text: str) -> str:
    """Remove the wrapping, and the position markers below it, from a traceback that quotes the last line."""
    if _BEFORE not in text:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        if lines and _BEFORE in lines[-1] and re.fullmatch(r"\s*[~^][~^ ]*", line):
            continue
        lines.append(line)
    return "\n".join(_unwrap(line) for line in lines)


def _unwrap(line: str) -> str:
    head, found, rest = line.partition(_BEFORE)
    if not found:
        return line
    end = rest.rfind(_AFTER)
    return head + (rest[:end] + rest[end + len(_AFTER) :] if end >= 0 else rest)


def _parse(code: str) -> ast.Module | None:
    """The syntax tree of a program; None if it does not compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(code, "main.py", "exec", dont_inherit=True)
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return None


def _wrap(code: str, last: ast.Expr) -> str | None:
    """Put the call around the last statement. Positions in the tree count UTF-8 bytes."""
    try:
        lines = code.encode().splitlines(keepends=True)
    except UnicodeEncodeError:
        return None
    end_line, end_column = last.end_lineno, last.end_col_offset
    if end_line is None or end_column is None or end_line > len(lines):
        return None
    lines[end_line - 1] = lines[end_line - 1][:end_column] + _AFTER.encode() + lines[end_line - 1][end_column:]
    start = last.lineno - 1
    lines[start] = lines[start][: last.col_offset] + _BEFORE.encode() + lines[start][last.col_offset :]
    return b"".join(lines).decode()


def _is_same_but_shown(before: ast.Module, after: ast.Module) -> bool:
    """True when `after` is `before` with its last expression as the one argument of the display call."""
    if len(before.body) != len(after.body):
        return False
    shown = after.body[-1]
    if not isinstance(shown, ast.Expr) or not isinstance(shown.value, ast.Call) or len(shown.value.args) != 1:
        return False
    last = before.body[-1]
    assert isinstance(last, ast.Expr), "the caller has checked that"
    pairs = [*zip(before.body[:-1], after.body[:-1], strict=True), (last.value, shown.value.args[0])]
    return all(ast.dump(a) == ast.dump(b) for a, b in pairs)
