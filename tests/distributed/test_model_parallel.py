"""The model on two gloo processes against one: tensor and sequence parallelism, odd vocabulary size, export of two
pipeline stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, multiprocessing

from rl.config.schema import Device
from rl.training.device import setup_device
from rl.training.head import logprobs_and_entropy
from rl.training.hf_weights import WeightMapping, export_hf_weights, map_to_hf, name_parameters
from rl.training.parallel import destroy_parallel, init_parallel
from tests.tiny import make_tiny_model
from tests.unit.training.model_cases import float32_config, load_policy, pack, random_sequences


def gradients_of_rank(
    rank: int, tp: int, meeting: str, folder: str, sequence_parallel: bool, results: str
) -> dict[str, Tensor]:
    """Compute log-probs, entropy and whole gradients; rank 0 saves them."""
    device = setup_device(Device.CPU, num_threads=1)
    parallel = init_parallel(
        rank=rank, world_size=tp, tp=tp, pp=1, init_method=f"file://{meeting}", device=device, timeout=60.0
    )
    (model,) = load_policy(Path(folder), parallel, float32_config(sequence_parallel=sequence_parallel))
    batch = pack(random_sequences((6, 3, 7), vocab_size=model.hf_config.vocab_size))
    out = logprobs_and_entropy(
        model(batch),
        model.head_weight,
        batch.target_ids,
        temperature=0.8,
        vocab_size=model.hf_config.vocab_size,
        parallel=parallel,
        sequence_parallel=sequence_parallel,
    )
    scales = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    (scales[0] * out.logprobs + scales[1] * out.entropy).sum().backward()
    parameters = name_parameters([model])
    for name, parameter in parameters.items():  # what Megatron's finalize_model_grads does after the last micro-batch
        if getattr(parameter, "sequence_parallel", False) or "q_layernorm" in name or "k_layernorm" in name:
            torch.distributed.all_reduce(parameter.grad, group=parallel.tp_group)
    mapping = WeightMapping.of(model.hf_config, parallel)
    found = dict(map_to_hf(((name, p.grad) for name, p in parameters.items()), mapping))
    found |= {"logprobs": out.logprobs.detach(), "entropy": out.entropy.detach()}
    found |= {f"exported/{name}": tensor for name, tensor in export_hf_weights([model], parallel)}
    if rank == 0:
        torch.save({name: tensor.clone() for name, tensor in found.items()}, results)
    destroy_parallel()
    return found


@pytest.mark.parametrize(
    ("family", "vocab_size", "sequence_parallel"),
    [("qwen2", 512, False), ("qwen3", 301, False), ("qwen3", 301, True)],
    ids=["tied", "odd-vocabulary", "sequence-parallel"],
)
def test_two_tensor_ranks_equal_one(tmp_path: Path, family: str, vocab_size: int, sequence_parallel: bool) -> None:
    folder = str(make_tiny_model(tmp_path / "model", family, vocab_size=vocab_size))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    gradients_of_rank(0, 1, one + ".store", folder, False, one)
    arguments = (2, two + ".store", folder, sequence_parallel, two)
    multiprocessing.spawn(gradients_of_rank, arguments, nprocs=2)
    expected, actual = torch.load(one), torch.load(two)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.startswith("exported/"):
            assert torch.equal(actual[name], tensor), name
        else:
            error = float((actual[name] - tensor).norm() / tensor.norm())
            assert error < 1e-5, (name, error)


def export_of_stage(rank: int, vpp: int | None, meeting: str, folder: str, results: str) -> None:
    device = setup_device(Device.CPU, num_threads=1)
    parallel = init_parallel(
        rank=rank, world_size=2, tp=1, pp=2, vpp=vpp, init_method=f"file://{meeting}", device=device, timeout=60.0
    )
    chunks = load_policy(Path(folder), parallel)
    torch.save({name: tensor.clone() for name, tensor in export_hf_weights(chunks, parallel)}, f"{results}.{rank}")
    if parallel.is_last_stage:
        torch.save(chunks[-1].head_weight.detach().clone(), f"{results}.head")
    destroy_parallel()


@pytest.mark.parametrize(("vpp", "last_layers"), [(None, {"2", "3"}), (2, {"1", "3"})], ids=["plain", "interleaved"])
def test_two_pipeline_stages_export_each_tensor_once(tmp_path: Path, vpp: int | None, last_layers: set[str]) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen2")
    results = str(tmp_path / "stage")
    multiprocessing.spawn(export_of_stage, (vpp, str(tmp_path / "store"), str(folder), results), nprocs=2)
    first, last = torch.load(results + ".0"), torch.load(results + ".1")
    assert not first.keys() & last.keys()
    source = load_file(folder / "model.safetensors")
    assert (first | last).keys() == source.keys()
    assert [name for name, tensor in (first | last).items() if not torch.equal(tensor, source[name])] == []
    assert {name.split(".")[2] for name in last if ".layers." in name} == last_layers
    # The head of the last stage is a copy of the embedding, filled from it.
    assert torch.equal(torch.load(results + ".head"), source["model.embed_tokens.weight"])
