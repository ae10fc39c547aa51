"""A tool for arithmetic: `function: rl.tools.calculator:calculator`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

_MAX_BITS = 4096
_MAX_CHARACTERS = 1000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name)
    for name in (
        "sqrt", "cbrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
        "sinh", "cosh", "tanh", "degrees", "radians", "floor", "ceil", "gcd", "lcm", "hypot", "isqrt",
    )
}  # fmt: skip
_FUNCTIONS |= {"abs": abs, "round": round, "min": min, "max": max, "ln": math.log}


async def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % **, parentheses, pi, e, and functions such as sqrt(x), log(x), sin(x),
            gcd(a, b), factorial(n), comb(n, k), round(x, digits).
    """
    return evaluate(expression)


def evaluate(expression: str) -> str:
    """Evaluate an arithmetic expression, in bounded time.

    Integers are exact up to 4096 bits. Other numbers have double precision.

    Args:
        expression: Python's notation, where `^` means a power; `,` between digits is not allowed.

    Returns:
        The value in Python's notation; a whole float without `.0`.

    Raises:
        ValueError: The expression is not arithmetic, or a number is too large.
        ArithmeticError: Division by zero, or a float out of range.
    """
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError(f"the expression has {len(expression)} characters, more than {_MAX_CHARACTERS}")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        value = _value(tree.body)
    except SyntaxError as error:
        raise ValueError(f"not an arithmetic expression: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise ValueError("the expression is nested too deeply") from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _value(node: ast.expr) -> Any:
    """Evaluate a node. Integers stay within `_MAX_BITS`, so every step is fast."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _checked(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _checked(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        arguments = [_value(argument) for argument in node.args]
        if node.func.id in _FUNCTIONS:
            return _checked(_FUNCTIONS[node.func.id](*arguments))
        if node.func.id in _COUNTS:
            return _count(node.func.id, arguments)
        raise ValueError(f"unknown function {node.func.id}; known: {', '.join(sorted(_FUNCTIONS | _COUNTS))}")
    raise ValueError(f"'{ast.unparse(node)}' is not arithmetic")


_COUNTS: dict[str, Callable[..., int]] = {"factorial": math.factorial, "comb": math.comb, "perm": math.perm}
_MAX_COUNT = 500


def _count(name: str, arguments: list[Any]) -> Any:
    """Factorials and the like. Their arguments are checked first, because the results grow too fast."""
    if any(isinstance(a, int) and a > _MAX_COUNT for a in arguments):
        raise ValueError(f"{name}: its arguments must be at most {_MAX_COUNT}")
    return _checked(_COUNTS[name](*arguments))


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_BITS:
        raise ValueError(f"{base} ** {exponent} has more than {_MAX_BITS} bits")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError(f"{base} ** {exponent} is not a real number")
    return _checked(value)


def _checked(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError(f"a number has more than {_MAX_BITS} bits")
    return value
