from __future__ import annotations

import json
from pathlib import Path

from rl.config.schema import Config
from rl.evaluate import load_held_out
from tests.tiny import make_tiny_tokenizer


def test_load_held_out_drops_prompts_that_are_too_long(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": text}], "ground_truth": "4", "data_source": "sums"}
        for text in ("2 + 2?", "2 + 2? " * 200, "1 + 3?")
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config()
    config.actor_config.load = str(tmp_path / "model")
    config.megatron_training.test_data_path = str(tmp_path / "test.jsonl")
    config.rl_config.max_prompt_length = 200
    assert [prompt.id for prompt in load_held_out(config)] == ["test-1", "test-3"]


def test_load_held_out_without_a_file_is_empty() -> None:
    assert load_held_out(Config()) == []
