"""The calculator task of TRL's TextEnvironment: its prompt and its tool.

    What is 4*3?

    <request><SimpleCalculatorTool>4*3<call>12<response>

    Result=12<submit>

The prompt ends with the question mark. The model writes the empty line and the request up to `<call>`. The tool's
answer and `<response>` are inserted behind it, in the same turn, and are not trained on. The model goes on with the
result.
"""

from __future__ import annotations

from rl.tools.calculator import evaluate

PROMPT = """\
What is 13.1-3?

<request><SimpleCalculatorTool>13.1-3<call>10.1<response>

Result=10.1<submit>

What is 4*3?

<request><SimpleCalculatorTool>4*3<call>12<response>

Result=12<submit>

What is 12.1+1?

<request><SimpleCalculatorTool>12.1+1<call>13.1<response>

Result=13.1<submit>

What is 12.1-20?

<request><SimpleCalculatorTool>12.1-20<call>-7.9<response>

Result=-7.9<submit>"""
"""The four worked examples of TRL's page "Learning Tools"."""


def SimpleCalculatorTool(expression: str) -> str:
    """Calculate.

    Args:
        expression: For example 13.1-3.
    """
    return str(round(float(evaluate(expression)), 2)).removesuffix(".0")
