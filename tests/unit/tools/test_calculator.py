import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.tools.calculator import calculator, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("-(2 - 5)", "3"),
        ("7 / 2", "3.5"),
        ("6 / 2", "3"),
        ("7 // 2", "3"),
        ("-7 % 3", "2"),
        ("2^10", "1024"),
        ("2 ** -1", "0.5"),
        ("2**100", "1267650600228229401496703205376"),
        (" sqrt(16) + abs(-1)", "5"),
        ("log(e)", "1"),
        ("round(pi, 2)", "3.14"),
        ("gcd(84, 36)", "12"),
        ("factorial(20)", "2432902008176640000"),
        ("comb(10, 3)", "120"),
        ("max(1, 2.5, 2)", "2.5"),
        ("1e308 * 1e10", "inf"),
    ],
)
def test_calculator_evaluates(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "not an arithmetic expression"),
        ("1 +", "not an arithmetic expression"),
        ("x + 1", "'x' is not arithmetic"),
        ("'a' * 3", "is not arithmetic"),
        ("__import__('os').system('true')", "is not arithmetic"),
        ("(1).real", "is not arithmetic"),
        ("[1][0]", "is not arithmetic"),
        ("foo(1)", "unknown function foo; known: abs, acos"),
        ("9**9**9", r"9 \*\* 387420489 has more than 4096 bits"),
        ("factorial(501)", "at most 500"),
        ("(-8) ** 0.5", "is not a real number"),
        ("sqrt(-1)", "math domain error"),
        ("sqrt(1, 2)", "takes exactly one argument"),
        ("+".join("1" * 600), "1199 characters, more than 1000"),
        ("(" * 400 + "1" + ")" * 400, "nested|not an arithmetic"),
    ],
)
def test_calculator_refuses(expression, message):
    with pytest.raises(ValueError, match=message):
        evaluate(expression)


def test_calculator_passes_division_by_zero_on():
    with pytest.raises(ZeroDivisionError):
        evaluate("1 / 0")


async def test_calculator_is_the_tool_function():
    assert await calculator("1 / 3") == str(1 / 3)


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789.+-*/%^() esqrtlogpi,", max_size=30))
def test_calculator_raises_nothing_but_values_and_arithmetic(text):
    with suppress(ValueError, ArithmeticError):
        evaluate(text)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_calculator_is_exact_on_integers(a, b):
    assert evaluate(f"({a}) * ({b}) + {b}") == str(a * b + b)
    assert math.isclose(float(evaluate(f"({a}) / 7")), a / 7)
