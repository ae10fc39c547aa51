"""TRL's calculator: data, tool, reward, and the tokens and the mask of a trajectory in plain text."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from examples.calculator.make_data import KINDS, make_data, make_row
from examples.calculator.task import PROMPT, SimpleCalculatorTool
from examples.text_environment import right_result
from rl.chat.demonstrations import render_demonstration
from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.tools.registry import load_toolbox
from rl.types import FinishReason, Generation, Prompt, Sampling, StopReason, Trajectory, Turn
from tests.fakes import ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "configs/tools/simple_calculator.yaml"
VOCABULARY = {
    **{"<end>": 0, "\n": 1, "What": 2, " ": 3, "is": 4, "4": 5, "*": 6, "3": 7, "?": 8, "<": 9, "request": 10, ">": 11},
    **{"SimpleCalculatorTool": 12, "call": 13, "1": 14, "2": 15, "response": 16, "Result": 17, "=": 18, "submit": 19},
    "<unk>": 20,
}
EXAMPLE = "What is 4*3?\n\n<request><SimpleCalculatorTool>4*3<call>12<response>\n\nResult=12<submit>"
QUESTION = {"role": "user", "content": f"{EXAMPLE}\n\nWhat is 3*4?"}
ASKED = [
    *[2, 3, 4, 3, 5, 6, 7, 8],  # What is 4*3?
    *[1, 1, 9, 10, 11, 9, 12, 11, 5, 6, 7, 9, 13, 11],  # \n\n<request><SimpleCalculatorTool>4*3<call>
    *[14, 15, 9, 16, 11],  # 12<response>
    *[1, 1, 17, 18, 14, 15, 9, 19, 11],  # \n\nResult=12<submit>
    *[1, 1, 2, 3, 4, 3, 7, 6, 5, 8],  # \n\nWhat is 3*4?
]
CALLED = [1, 1, 9, 10, 11, 9, 12, 11, 7, 6, 5, 9, 13, 11]
"""\\n\\n<request><SimpleCalculatorTool>3*4<call>"""
TOLD = [14, 15, 9, 16, 11]
"""12<response>"""
SUBMITTED = [1, 1, 17, 18, 14, 15, 9, 19, 11]
"""\\n\\nResult=12<submit>"""


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^A-Za-z]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    schemas = load_toolbox(TOOLS).schemas
    return Renderer(fast, "plain", schemas, PARSERS["text_environment"].for_tools(schemas))


def test_a_rollout_inserts_the_tools_answer_with_mask_0(renderer: Renderer) -> None:
    script = [Generation(ids, [-0.5] * len(ids), FinishReason.STOP, 0) for ids in (CALLED, SUBMITTED)]
    engine, toolbox, config = ScriptedEngine(script), load_toolbox(TOOLS), Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 1
    parser = PARSERS["text_environment"].for_tools(toolbox.schemas)
    loop = AgentLoop(engine, renderer, toolbox, parser, config)
    trajectory = asyncio.run(loop.run(Prompt("p", [QUESTION], "12", "test"), 0, Sampling(1.0, 48)))
    (sequence,) = trajectory.sequences
    assert sequence.token_ids.tolist() == ASKED + CALLED + TOLD + SUBMITTED
    assert sequence.loss_mask.tolist() == [0] * 46 + [1] * 14 + [0] * 5 + [1] * 9
    assert [request.token_ids for request in engine.requests] == [ASKED, ASKED + CALLED + TOLD]
    assert engine.requests[0].sampling.stop == ("<call>", "<submit>")
    assert trajectory.stop_reason is StopReason.FINISHED
    assert right_result(trajectory) == 1.0


def test_a_demonstration_has_the_tokens_and_the_mask_of_a_rollout(renderer: Renderer) -> None:
    call = {"function": {"name": "SimpleCalculatorTool", "arguments": {"expression": "3*4"}}}
    turns = [
        {"role": "assistant", "content": "\n\n", "tool_calls": [call]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "\n\nResult=12<submit>"},
    ]
    ((ids, mask),) = render_demonstration(renderer, [QUESTION, *turns])
    assert ids == [*ASKED, *CALLED, *TOLD, *SUBMITTED, 0]
    assert mask == [0] * 46 + [1] * 14 + [0] * 5 + [1] * 9 + [0]


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("13.1-3", "10.1"),
        ("12.1-20", "-7.9"),
        ("4*3", "12"),
        ("12.1 + 1", "13.1"),
        ("10/3", "3.33"),
        ("3*(41-7)", "102"),
    ],
)
def test_the_tool_rounds_to_two_places(expression: str, result: str) -> None:
    assert SimpleCalculatorTool(expression) == result


def test_the_tool_refuses_what_is_no_arithmetic() -> None:
    with pytest.raises(ValueError, match="not arithmetic"):
        SimpleCalculatorTool("().__class__")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("\n\nResult=12<submit>", 1.0),
        ("\n\nResult=12.0<submit>", 1.0),
        ("\n\nResult = 12 <submit>", 1.0),
        ("\n\nResult=12.01<submit>", 0.0),
        ("\n\nResult=-12<submit>", 0.0),
        ("\n\nResult=12", 0.0),
        ("\n\nResult=11<submit> Result=12<submit>", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_wants_one_submitted_number(text: str, score: float) -> None:
    prompt = Prompt("train-0", [{"role": "user", "content": "What is 4*3?"}], "12", "calculator")
    assert right_result(Trajectory(prompt, 0, [], [Turn(text, 1)], StopReason.FINISHED)) == score


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("two_numbers", r"\d+ [-+*] \d+|\d+\.\d{1,3}[-+*/]\d+\.\d{1,3}"),
        ("chain", r"\d+\.\d([-+*]\d+\.\d){3,4}"),
        ("parentheses", r"\d+\*\(\d+[-+]\d+\)"),
    ],
)
def test_a_question_ends_the_prompt_and_its_answer_is_a_number(kind: str, pattern: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        row = make_row(kind, rng)
        expression = row["messages"][0]["content"].removeprefix(f"{PROMPT}\n\nWhat is ").removesuffix("?")
        assert re.fullmatch(pattern, expression), expression
        assert re.fullmatch(r"-?\d+(\.\d{1,2})?", row["ground_truth"])


def test_no_question_is_in_both_files(tmp_path: Path) -> None:
    make_data(tmp_path, num_train=30, num_eval=12, seed=1)
    rows = [pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("train", "eval")]
    assert [len(of_file) for of_file in rows] == [30, 12]
    assert len({row["messages"][0]["content"] for of_file in rows for row in of_file}) == 42
    assert [row["data_source"] for row in rows[1]].count("chain") == 12 / len(KINDS)
