"""TRL's calculator: data, tool, reward, and the tokens and the mask of a trajectory in plain text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from examples.calculator.make_data import demonstrate, make_row
from examples.calculator.task import PROMPT, SimpleCalculatorTool, right_result
from rl.chat.demonstrations import render_demonstration
from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer, load_tokenizer
from rl.tools.registry import load_toolbox
from rl.types import Prompt, StopReason, Trajectory, Turn
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("expression", "result"), [("13.1-3", "10.1"), ("12.1-20", "-7.9"), ("4*3", "12"), ("10/3", "3.33"), ("5-5", "0")]
)
def test_the_tool_rounds_to_two_places(expression: str, result: str) -> None:
    assert SimpleCalculatorTool(expression) == result


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<request><SimpleCalculatorTool>4*3<call>12<response>\n\nResult=12<submit>", 1.0),
        ("\n\nResult=12.0<submit>", 1.0),
        ("\n\nResult=12.01<submit>", 0.0),
        ("\n\nResult=12", 0.0),
        ("\n\nResult=11<submit> Result=12<submit>", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_wants_one_submitted_number(text: str, score: float) -> None:
    prompt = Prompt("train-0", [{"role": "user", "content": "What is 4*3?"}], "12", "calculator")
    assert right_result(Trajectory(prompt, 0, [], [Turn(text, 1)], StopReason.FINISHED)) == score


def test_questions_and_demonstrations_agree_with_the_tool() -> None:
    rng = random.Random(0)
    for _ in range(100):
        row = make_row(rng)
        assert row["messages"][0]["content"].startswith(PROMPT)
        question, call, result, answer = json.loads(demonstrate(row)["messages"])
        assert question == row["messages"][0]
        expression = call["tool_calls"][0]["function"]["arguments"]["expression"]
        assert question["content"].endswith(f"\n\nWhat is {expression}?\n\n")
        assert result["content"] == row["ground_truth"] == SimpleCalculatorTool(expression)
        assert answer["content"] == f"\n\nResult={row['ground_truth']}<submit>"


def test_a_demonstration_is_the_plain_text_and_only_what_the_model_writes_is_trained(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path))
    tools = load_toolbox(ROOT / "configs/tools/simple_calculator.yaml").schemas
    renderer = Renderer(tokenizer, "plain", tools, PARSERS["text_environment"].for_tools(tools))
    row = {"messages": [{"role": "user", "content": f"{PROMPT}What is 4*3?\n\n"}], "ground_truth": "12"}
    ((ids, mask),) = render_demonstration(renderer, json.loads(demonstrate(row)["messages"]))
    trained = "".join(tokenizer.decode([i]) if m else "|" for i, m in zip(ids, mask, strict=True)).strip("|")
    called, submitted = (part for part in trained.split("|") if part)
    assert called == "<request><SimpleCalculatorTool>4*3<call>"
    assert submitted.startswith("\n\nResult=12<submit>")
    whole = renderer.decode(ids)
    assert whole.startswith(
        PROMPT + "What is 4*3?\n\n<request><SimpleCalculatorTool>4*3<call>12<response>\n\nResult=12"
    )
