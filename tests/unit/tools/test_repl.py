import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.tools.repl import show_last_expression, strip_display


def run(code: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("1 + 2", "3\n"),
        ("'a'", "'a'\n"),
        ("x = 3\nx  # the value", "3\n"),
        ("x = 3; x", "3\n"),
        ("1,\\\n 2", "(1, 2)\n"),
        ("(\n 1 + # one\n 2\n)", "3\n"),
        ("'é'; 'é' * 2  # ü", "'éé'\n"),
        ("a = [1]\n*a, 2", "(1, 2)\n"),
        ("(y := 5)", "5\n"),
        ("from __future__ import annotations\nf'{1}'", "'1'\n"),
        ("lambda: 1\nNone", ""),
        ("print(7)", "7\n"),
        ("'''one\ntwo'''", "'one\\ntwo'\n"),
        ("(i for i in [1]) and 4", "4\n"),
        ("1\r\n2\r\n", "2\n"),
    ],
)
def test_show_last_expression_prints_what_a_prompt_would(code, output):
    assert run(show_last_expression(code)) == (output, "")


@pytest.mark.parametrize(
    "code",
    [
        "x = 1",
        "for",
        "",
        "# nothing",
        "yield 1",
        "await x",
        "return 2",
        "if True:\n    5",
        "def f():\n    return 1",
        "a\0b",
        "*a",
    ],
)
def test_show_last_expression_leaves_other_code_alone(code):
    assert show_last_expression(code) == code


def test_show_last_expression_keeps_every_line():
    code = "import math\n\nx = 2\nmath.sqrt(\n    x\n)\n"
    assert show_last_expression(code).count("\n") == code.count("\n")
    assert show_last_expression(code).splitlines()[:3] == code.splitlines()[:3]


def test_strip_display_gives_the_traceback_of_the_code_as_written():
    shown = show_last_expression("x = 0\n1 / x")
    trace = f'  File "main.py", line 2, in <module>\n    {shown.splitlines()[1]}\n    ~~^~~\nZeroDivisionError: no\n'
    assert strip_display(trace) == '  File "main.py", line 2, in <module>\n    1 / x\nZeroDivisionError: no\n'
    assert strip_display("    ~~^~~\nplain") == "    ~~^~~\nplain"


LINES = [
    "x = 1",
    "x",
    "(x,",
    " 2)",
    "f(",
    ")",
    "def f(*a):",
    "  return a",
    "'''",
    "# é",
    "x; x",
    "é = 2",
    "é",
    "\\",
    "if x:",
    "  x",
    "yield",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_show_last_expression_never_breaks_valid_code(lines, end):
    code = end.join(lines)
    try:
        compile(code, "main.py", "exec")
    except SyntaxError:
        assert show_last_expression(code) == code
    else:
        compile(show_last_expression(code), "main.py", "exec")
