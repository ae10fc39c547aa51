"""TRL's Python interpreter: data, a program run by the sandbox, and the tokens and the mask of a trajectory."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from examples.boxed.make_data import make_row
from examples.python_interpreter.make_data import PROMPT, STORIES, demonstrate, make_data, prompt_row
from examples.text_environment import right_result
from rl.chat.demonstrations import render_demonstration
from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.services.embedded import EmbeddedSandbox
from rl.tools.registry import load_toolbox
from rl.types import FinishReason, Generation, Prompt, Sampling, StopReason
from tests.fakes import ScriptedEngine

TOOLS = Path(__file__).resolve().parents[2] / "configs/tools/text_environment_python.yaml"
CHARACTERS = {chr(code): code for code in range(1, 127)} | {"<end>": 0, "<unk>": 127}
QUESTION = "Iris buys 3 pens for 5 dollars each with 2 dollars off. How many dollars is that?"
PROGRAM = """
def solution():
    things = 3
    price = 5
    off = 2
    cost = things * price
    result = cost - off
    return result
print(solution())
"""
WORKED = "<request><PythonInterpreter>print(8)<call>8<response>\n\nResult = 8 <submit>\n\n"
COMPARES = """
def solution():
    left = 13
    while left > 9 and not left < 5:
        left -= 3
    return left
print(solution())
"""


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    """A token is a character, and its id is the character's code."""
    tokenizer = Tokenizer(models.WordLevel(CHARACTERS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    schemas = load_toolbox(TOOLS).schemas
    return Renderer(fast, "plain", schemas, PARSERS["text_environment"].for_tools(schemas))


async def test_a_rollout_runs_a_program_of_several_lines_with_comparisons(renderer: Renderer) -> None:
    said = [f"\n\n<request><PythonInterpreter>{COMPARES}<call>", "\n\nResult = 7 <submit>"]
    script = [Generation([ord(c) for c in text], [-0.5] * len(text), FinishReason.STOP, 0) for text in said]
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 1
    with EmbeddedSandbox(workers=1) as sandbox:
        toolbox = load_toolbox(TOOLS, overrides={"PythonInterpreter": {"sandbox_fusion_url": sandbox.url}})
        parser = PARSERS["text_environment"].for_tools(toolbox.schemas)
        loop = AgentLoop(ScriptedEngine(script), renderer, toolbox, parser, config)
        prompt = Prompt("p", [{"role": "user", "content": WORKED + "Q: 13?"}], "7", "test")
        trajectory = await loop.run(prompt, 0, Sampling(1.0, 200))
        await toolbox.close()
    (sequence,) = trajectory.sequences
    assert "".join(map(chr, sequence.token_ids)) == f"{WORKED}Q: 13?{said[0]}7<response>{said[1]}"
    assert sequence.loss_mask.tolist() == [0] * (len(WORKED) + 6) + [1] * len(said[0]) + [0] * 11 + [1] * 21
    assert trajectory.stop_reason is StopReason.FINISHED
    assert right_result(trajectory) == 1.0


def test_a_demonstration_has_the_text_and_the_mask_of_a_rollout(renderer: Renderer) -> None:
    row = demonstrate(QUESTION, "3 * 5 = 15\n15 - 2 = 13\n#### 13")
    called, submitted = f"\n\n<request><PythonInterpreter>{PROGRAM}<call>", "\n\nResult = 13 <submit>"
    ((ids, mask),) = render_demonstration(renderer, row["messages"])
    assert "".join(map(chr, ids)) == f"{PROMPT}{QUESTION}{called}13<response>{submitted}\0"
    before = len(PROMPT + QUESTION)
    assert mask == [0] * before + [1] * len(called) + [0] * 12 + [1] * 22 + [0]


def test_the_prompt_shows_trls_example_in_the_form_of_a_demonstration() -> None:
    example = PROMPT.partition("Q: ")[2]
    question, _, program = example.partition("\n\n<request><PythonInterpreter>")
    assert question.endswith("left?")
    assert program.startswith("\ndef solution():\n    money_initial = 23\n")
    assert program.endswith("print(solution())\n<call>8<response>\n\nResult = 8 <submit>\n\nQ: ")


@pytest.mark.parametrize("word", STORIES)
def test_the_program_of_a_story_gives_its_answer_whatever_the_numbers(word: str) -> None:
    rng, seen = random.Random(3), 0
    while seen < 3:
        row = make_row(rng)
        if word in row["question"]:
            seen += 1
            *_, told, submission = demonstrate(row["question"], row["answer"])["messages"]
            assert row["answer"].endswith(f"#### {told['content']}")
            assert submission["content"] == f"\n\nResult = {told['content']} <submit>"


@pytest.mark.parametrize(
    ("question", "source"),
    [
        (QUESTION, "demonstrated"),
        ("Iris has 3 boxes with 5 pens each, and 2 pens more. How many pens are there?", "demonstrated"),
        ("Iris has 3 boxes with 5 pens each, and loses 2. How many pens are left?", "new"),
        ("Iris sells 3 pens a day for 5 days, then 2 more. How many pens is that?", "new"),
        ("Iris has 3 pens. A friend has 5 times as many. How many have both?", "new"),
    ],
)
def test_a_row_says_whether_its_story_is_demonstrated(question: str, source: str) -> None:
    row = prompt_row(question, "#### 13")
    assert (row["ground_truth"], row["data_source"]) == ("13", source)
    assert row["messages"] == [{"role": "user", "content": f"{PROMPT}{question}"}]


def test_no_question_is_in_two_files(tmp_path: Path) -> None:
    make_data(tmp_path, num_train=30, num_eval=20, num_demonstrations=6, seed=1)
    names = ("train", "eval", "demonstrations")
    files = [pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in names]
    assert [len(rows) for rows in files] == [30, 20, 6]
    assert len({json.dumps(row["messages"][0]) for rows in files for row in rows}) == 56
    assert {row["data_source"] for row in files[2]} == {"demonstrated"}
