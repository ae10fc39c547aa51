"""configs/datasets/*.yaml read rows of the schemas of the public files; the rows are written here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.config.load import load_dataset_config
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.errors import DataError
from rl.rewards.truths import accepted_answers
from rl.types import Prompt

ROOT = Path(__file__).resolve().parents[3]
ASKS_FOR_A_BOX = "Solve the problem step by step. Put the final number into \\boxed{}."
GSM8K = {"question": "Ann has 3 bags of 24 nuts. How many nuts?", "answer": "She has 3*24 = <<3*24=72>>72.\n#### 72"}
DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve the following math problem. What is 6 * 7?"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
SEARCH = {
    "id": "train_0",
    "question": "who wrote the book of counts?",
    "golden_answers": ["Ada Low", "A. Low"],
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer the given question. You may <search>. Question: who wrote it?"}],
    "ability": "fact-reasoning",
    "reward_model": {"ground_truth": {"target": ["Ada Low", "A. Low"]}, "style": "rule"},
    "extra_info": {"index": 0, "split": "train"},
    "metadata": None,
}
AIME_2024 = {"ID": "2024-I-1", "Problem": "Find 6 * 7.", "Solution": "It is 42.", "Answer": 42}
DEEPSCALER = {"problem": "Find 6 * 7.", "answer": "42", "solution": "It is 42."}
RETOOL = {
    "messages": [
        {
            "role": "user",
            "content": "Solve the problem step by step. Wrap each snippet: `<code>...</code>`.\n\n*user question:*\n"
            "What is 6 * 7?\n\nPut the answer in the last part: <answer>\\boxed{'The final answer.'}</answer>",
        },
        {
            "role": "assistant",
            "content": "I compute it.\n<code>\n```python\nx = 6 * 7\nprint(x)\n```\n</code>\n<interpreter>\n42\n"
            "</interpreter>\nAgain.\n<code>print(6 + 7)</code><interpreter>13</interpreter>\n"
            "So <answer>\n\\boxed{42}\n</answer>",
        },
    ]
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, name: str, source: Path) -> list[Prompt]:
    overrides = [f"input={source}", f"output_prefix={folder}/rows"]
    return load_prompts(preprocess(load_dataset_config(f"datasets/{name}", overrides)))


@pytest.mark.parametrize(
    ("name", "file", "row", "question", "truth", "source"),
    [
        ("gsm8k", "train.jsonl", GSM8K, GSM8K["question"], "72", "gsm8k"),
        ("gsm8k", "main/train-00000-of-00001.parquet", GSM8K, GSM8K["question"], "72", "gsm8k"),
        ("gsm8k_test", "test.jsonl", GSM8K, GSM8K["question"], "72", "gsm8k"),
        ("math_17k", "dapo-math-17k.parquet", DAPO, DAPO["prompt"][0]["content"], "42", "math_dapo"),
        ("math_17k_retool", "dapo-math-17k.parquet", DAPO, DAPO["prompt"][0]["content"], "42", "math_dapo"),
        ("deepscaler", "deepscaler.json", DEEPSCALER, "Find 6 * 7.", "42", "deepscaler"),
        ("aime_2024", "aime_2024_problems.parquet", AIME_2024, "Find 6 * 7.", "42", "aime_2024"),
        (
            "aime_2025",
            "test.jsonl",
            {"problem": "Find 6 * 7.", "answer": "42", "id": "0"},
            "Find 6 * 7.",
            "42",
            "aime_2025",
        ),
        ("search", "train.parquet", SEARCH, SEARCH["question"], '["Ada Low", "A. Low"]', "nq"),
        (
            "search_r1",
            "train.parquet",
            SEARCH,
            SEARCH["prompt"][0]["content"],
            '{"target": ["Ada Low", "A. Low"]}',
            "nq",
        ),
    ],
)
def test_dataset_is_read(
    tmp_path: Path, name: str, file: str, row: dict, question: str, truth: str, source: str
) -> None:
    (prompt,) = read(tmp_path, name, write(tmp_path / file, row))
    *system, asked = prompt.messages
    assert asked == {"role": "user", "content": question}
    assert [m["content"] for m in system] == ([ASKS_FOR_A_BOX] if name.startswith("gsm8k") else [])
    assert (prompt.ground_truth, prompt.data_source) == (truth, source)
    if name.startswith("search"):
        assert accepted_answers(prompt.ground_truth) == ["Ada Low", "A. Low"]


def test_aime_2025_reads_the_two_files_of_a_folder(tmp_path: Path) -> None:
    for part, answer in (("I", "70"), ("II", "468")):
        write(tmp_path / f"AIME2025/aime2025-{part}.jsonl", {"question": f"{part}?", "answer": answer})
    assert [p.ground_truth for p in read(tmp_path, "aime_2025", tmp_path / "AIME2025")] == ["70", "468"]


def test_retool_conversation_becomes_calls_and_results(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, "retool_sft", write(tmp_path / "train_2000.parquet", RETOOL))

    def call(code: str) -> list[dict]:
        return [{"type": "function", "function": {"name": "code_interpreter", "arguments": {"code": code}}}]

    assert prompt.messages == [
        {
            "role": "user",
            "content": "What is 6 * 7?\n\nPut the answer in the last part: \\boxed{'The final answer.'}",
        },
        {"role": "assistant", "content": "I compute it.", "tool_calls": call("x = 6 * 7\nprint(x)")},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "Again.", "tool_calls": call("print(6 + 7)")},
        {"role": "tool", "content": "13"},
        {"role": "assistant", "content": "So \n\\boxed{42}"},
    ]
    assert prompt.ground_truth == ""


@pytest.mark.parametrize("text", ["<code>1</code> and no output", "<interpreter>2</interpreter>", "<code>1"])
def test_retool_conversation_that_is_not_whole_is_an_error(tmp_path: Path, text: str) -> None:
    row = {"messages": [RETOOL["messages"][0], {"role": "assistant", "content": text}]}
    with pytest.raises(DataError, match=r"row 1: the assistant's text has <code> or <interpreter> without the other"):
        read(tmp_path, "retool_sft", write(tmp_path / "train.jsonl", row))


def test_answer_that_the_pattern_does_not_match_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", GSM8K, {**GSM8K, "answer": "72"})
    with pytest.raises(DataError, match=r"row 2: the answer does not match answer_pattern '#### \(\.\*\)', got '72'"):
        read(tmp_path, "gsm8k", source)


def test_script_preprocesses_by_name(tmp_path: Path) -> None:
    for name in ("common.sh", "preprocess_data.sh"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    write(tmp_path / "dataset/gsm8k/train.jsonl", GSM8K)
    command = ["bash", str(tmp_path / "scripts/preprocess_data.sh")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "gsm8k"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [p.ground_truth for p in load_prompts(tmp_path / "dataset/gsm8k.parquet")] == ["72"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert {"gsm8k", "math_17k", "deepscaler"} <= set(done.stderr.split())
