from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from rl.errors import ModelError
from rl.training.hf_files import INDEX_NAME, finish_hf_folder, read_source_files, write_shards
from rl.training.hf_weights import WeightMapping, export_hf_weights, name_parameters
from rl.training.parallel import ParallelState
from tests.tiny import make_tiny_model
from tests.unit.training.model_cases import load_policy

LAYER = "decoder.layers.2."


def mapping_of_rank(tp_rank: int, tp_size: int = 2, *, vocab_size: int = 5) -> WeightMapping:
    """4 heads in 2 groups, one channel per head; sharding needs no process group."""
    config = Qwen2Config(
        hidden_size=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=vocab_size, tie_word_embeddings=True
    )
    place = ParallelState(
        rank=tp_rank, world_size=tp_size, tp_rank=tp_rank, tp_size=tp_size, pp_rank=0, pp_size=1, dp_rank=0, dp_size=1,
        vpp_size=None, tp_group=None, pp_group=None, dp_group=None, device=torch.device("cpu"),  # type: ignore[arg-type]
    )  # fmt: skip
    return WeightMapping.of(config, place)


QKV_BIAS = {
    "model.layers.2.self_attn.q_proj.bias": torch.tensor([0, 1, 2, 3]),
    "model.layers.2.self_attn.k_proj.bias": torch.tensor([10, 11]),
    "model.layers.2.self_attn.v_proj.bias": torch.tensor([20, 21]),
}


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [(0, 1, [0, 1, 10, 20, 2, 3, 11, 21]), (0, 2, [0, 1, 10, 20]), (1, 2, [2, 3, 11, 21])],
)
def test_shard_interleaves_query_key_value_by_group(rank: int, size: int, expected: list[int]) -> None:
    shard = mapping_of_rank(rank, size).shard(LAYER + "self_attention.linear_qkv.bias", QKV_BIAS.__getitem__)
    assert shard.tolist() == expected


def test_gather_undoes_interleaving() -> None:
    mapping = mapping_of_rank(0, 1)
    tensor = torch.tensor([0, 1, 10, 20, 2, 3, 11, 21])
    gathered = dict(mapping.gather(LAYER + "self_attention.linear_qkv.bias", tensor))
    assert {name: t.tolist() for name, t in gathered.items()} == {n: t.tolist() for n, t in QKV_BIAS.items()}


def test_shard_puts_gate_rows_before_up_rows() -> None:
    whole = {"gate": torch.tensor([[1], [2], [3], [4]]), "up": torch.tensor([[5], [6], [7], [8]])}
    read = lambda name: whole[name.split(".")[-2].removesuffix("_proj")]  # noqa: E731
    assert mapping_of_rank(1).shard(LAYER + "mlp.linear_fc1.weight", read).tolist() == [[3], [4], [7], [8]]


def test_shard_splits_projections_along_their_inputs() -> None:
    shard = mapping_of_rank(1).shard(LAYER + "mlp.linear_fc2.weight", lambda _: torch.tensor([[1, 2, 3, 4]]))
    assert shard.tolist() == [[3, 4]]


def test_shard_pads_a_vocabulary_the_ranks_do_not_divide() -> None:
    whole = torch.tensor([[1], [2], [3], [4], [5]])
    assert mapping_of_rank(0).shard("embedding.word_embeddings.weight", lambda _: whole).tolist() == [[1], [2], [3]]
    assert mapping_of_rank(1).shard("embedding.word_embeddings.weight", lambda _: whole).tolist() == [[4], [5], [0]]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen2-untied", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_is_bit_exact(parallel: ParallelState, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = make_tiny_model(tmp_path / "source", family, dtype=dtype, max_shard_size="150KB")
    assert (source / INDEX_NAME).is_file()
    chunks = load_policy(source, parallel)  # float32 holds every bfloat16
    (saved := tmp_path / "saved").mkdir()
    exported = ((name, tensor.to(dtype)) for name, tensor in export_hf_weights(chunks, parallel))
    index = write_shards(saved, exported, max_shard_size=10**5)
    finish_hf_folder(saved, index, source=read_source_files(source), dtype=dtype)
    expected, actual = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (source, saved))
    assert actual.dtype == dtype
    assert_same_tensors(actual.state_dict(), expected.state_dict())
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (source, saved)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_exported_names_are_those_of_the_source(parallel: ParallelState, tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path, "qwen2", num_layers=2)
    names = [name for name, _ in export_hf_weights(load_policy(source, parallel), parallel)]
    reference = dict(AutoModelForCausalLM.from_pretrained(source).named_parameters())
    assert sorted(names) == sorted(reference)  # a tied head is not written twice


def test_name_parameters_numbers_layers_from_zero(parallel: ParallelState, tmp_path: Path) -> None:
    names = list(name_parameters(load_policy(make_tiny_model(tmp_path, "llama", num_layers=2), parallel)))
    assert names[:3] == [
        "embedding.word_embeddings.weight",
        "decoder.layers.0.input_layernorm.weight",
        "decoder.layers.0.self_attention.linear_proj.weight",
    ]
    assert sum(name.startswith("decoder.layers.1.") for name in names) == 6


def test_load_of_a_missing_shard_names_it(parallel: ParallelState, tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path, "llama", max_shard_size="150KB")
    lost = sorted(source.glob("*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"{lost.name} is missing"):
        load_policy(source, parallel)


def test_load_of_a_corrupt_file_names_it(parallel: ParallelState, tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path, "llama")
    (source / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file"):
        load_policy(source, parallel)


def test_load_of_a_missing_tensor_names_it(parallel: ParallelState, tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path, "qwen2", tied=True)
    edit_config(source, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_policy(source, parallel)


def test_load_of_another_size_names_the_tensor(parallel: ParallelState, tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path, "llama")
    edit_config(source, intermediate_size=96)
    with pytest.raises(ModelError, match=r"gate_proj\.weight.*requires \(192, 64\).*got \(256, 64\)"):
        load_policy(source, parallel)


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
