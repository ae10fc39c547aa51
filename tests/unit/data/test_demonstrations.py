"""Token lists written by hand: <user>=1 <end>=2 <assistant>=3 <tool>=4, see tests/fakes.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.chat.renderer import Renderer
from rl.data.demonstrations import load_demonstrations
from rl.errors import DataError
from tests.fakes import word_tokenizer

ASKED = {"role": "user", "content": "what"}
TURNS = [{"role": "assistant", "content": "answer think 42"}, {"role": "tool", "content": "one"}]
ANSWER = {"role": "assistant", "content": "two"}


def write(folder: Path, *conversations: list[dict]) -> Path:
    rows = [{"messages": messages, "ground_truth": "", "data_source": "test"} for messages in conversations]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def forgetful() -> Renderer:
    """Drops what stands before `think` of all messages but the last."""
    tokenizer = word_tokenizer(forgetful=True)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.content.split", "m.content if loop.last else m.content.split"
    )
    return Renderer(tokenizer, "empty", [])


def test_load_demonstrations_masks_what_the_assistant_says(tmp_path: Path) -> None:
    path = write(tmp_path, [ASKED, *TURNS, ANSWER])
    (sample,) = load_demonstrations(path, Renderer(word_tokenizer(), "empty", []), 100)
    assert sample.token_ids.tolist() == [1, 10, 2, 3, 14, 13, 15, 2, 4, 21, 2, 3, 22, 2]
    assert sample.loss_mask.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert sample.advantages.tolist() == sample.loss_mask.tolist()


def test_load_demonstrations_has_several_samples_where_the_template_rewrites_history(tmp_path: Path) -> None:
    path = write(tmp_path, [ASKED, ANSWER], [ASKED, *TURNS, ANSWER])
    alone, first, second = load_demonstrations(path, forgetful(), 100)
    assert alone.token_ids.tolist() == [1, 10, 2, 3, 22, 2]
    assert first.token_ids.tolist() == [1, 10, 2, 3, 14, 13, 15, 2]
    assert second.token_ids.tolist() == [1, 10, 2, 3, 15, 2, 4, 21, 2, 3, 22, 2]
    assert second.loss_mask.tolist() == [0] * 10 + [1, 1]
    assert (first.trajectory_id == second.trajectory_id) and (alone.trajectory_id != first.trajectory_id)


def test_load_demonstrations_names_the_row_that_cannot_be_used(tmp_path: Path) -> None:
    renderer = Renderer(word_tokenizer(), "empty", [])
    with pytest.raises(DataError, match="row 2 has no assistant message"):
        load_demonstrations(write(tmp_path, [ASKED, ANSWER], [ASKED]), renderer, 100)
    with pytest.raises(DataError, match="row 1 begins with the assistant"):
        load_demonstrations(write(tmp_path, [ANSWER, ASKED]), renderer, 100)
    with pytest.raises(DataError, match=r"row 1 has 6 tokens, more than megatron_training\.seq_length 5"):
        load_demonstrations(write(tmp_path, [ASKED, ANSWER]), renderer, 5)
