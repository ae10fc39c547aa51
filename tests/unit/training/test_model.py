from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.errors import ModelError
from rl.training.model import build_model, load_hf_config, padded_vocab_size
from rl.training.parallel import ParallelState
from tests.tiny import make_tiny_model
from tests.unit.training.model_cases import float32_config
from tests.unit.training.test_hf_weights import edit_config


def test_load_hf_config_without_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"actor_config\.load: must be a model folder"):
        load_hf_config(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_load_hf_config_of_a_malformed_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="not a JSON object"):
        load_hf_config(tmp_path)


def test_load_hf_config_of_an_unsupported_family_lists_the_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    with pytest.raises(
        ModelError, match=r"unknown name 'qwen3_moe'. Did you mean 'qwen3'\? Known: llama, qwen2, qwen3"
    ):
        load_hf_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_bias": True}, "attention_bias: not supported"),
        ({"hidden_act": "gelu"}, "only silu is supported, got 'gelu'"),
        ({"num_key_value_heads": 3}, "must divide 4 num_attention_heads, got 3"),
        ({"hidden_size": "wide"}, "not a valid config"),
    ],
)
def test_load_hf_config_rejects_options_that_the_family_does_not_have(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    edit_config(make_tiny_model(tmp_path, "llama"), **fields)
    with pytest.raises(ModelError, match=message):
        load_hf_config(tmp_path)


def test_load_hf_config_rejects_rope_that_depends_on_the_length(tmp_path: Path) -> None:
    folder = make_tiny_model(
        tmp_path, "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    )
    with pytest.raises(ModelError, match="unknown name 'dynamic'"):
        load_hf_config(folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tp_size": 3}, "must divide 4 attention heads and 2 key-value heads, got 3. Set one of 1, 2"),
        ({"tp_size": 4}, "must divide 4 attention heads and 2 key-value heads, got 4. Set one of 1, 2"),
        ({"pp_size": 3}, "must divide 4 layers, got 3. Set one of 1, 2, 4"),
    ],
)
def test_build_model_rejects_sizes_that_do_not_divide(
    parallel: ParallelState, tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    hf_config = load_hf_config(make_tiny_model(tmp_path, "llama"))
    with pytest.raises(ModelError, match=message):
        build_model(hf_config, config=float32_config(), parallel=replace(parallel, **sizes))


def test_build_model_takes_the_dtype_of_the_config(parallel: ParallelState, tmp_path: Path) -> None:
    config = float32_config()
    config.megatron_training.bf16 = True
    (model,) = build_model(load_hf_config(make_tiny_model(tmp_path, "qwen3")), config=config, parallel=parallel)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_padded_vocab_size_is_the_next_multiple() -> None:
    assert [padded_vocab_size(5, size) for size in (1, 2, 5, 4)] == [5, 6, 5, 8]
