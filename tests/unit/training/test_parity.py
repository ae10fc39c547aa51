"""The policy against transformers, on random models of each family: log-probs, entropy and every gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.batches import MicroBatch
from rl.training.head import HeadOutput, logprobs_and_entropy
from rl.training.hf_weights import WeightMapping, map_to_hf, name_parameters
from rl.training.model import PolicyModel
from rl.training.parallel import ParallelState
from tests.tiny import make_tiny_model
from tests.unit.training.model_cases import float32_config, load_policy, pack, random_sequences

TEMPERATURE = 0.8
LENGTHS = (5, 9, 1, 14)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}


def run_policy(model: PolicyModel, batch: MicroBatch, parallel: ParallelState) -> HeadOutput:
    return logprobs_and_entropy(
        model(batch),
        model.head_weight,
        batch.target_ids,
        temperature=TEMPERATURE,
        vocab_size=model.hf_config.vocab_size,
        parallel=parallel,
    )


def policy_gradients(model: PolicyModel, loss: Tensor, parallel: ParallelState) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    gradients = ((name, parameter.grad) for name, parameter in name_parameters([model]).items())
    mapping = WeightMapping.of(model.hf_config, parallel)
    return {name: tensor.clone() for name, tensor in map_to_hf(gradients, mapping)}


def random_loss(logprobs: Tensor, entropy: Tensor) -> Tensor:
    scales = torch.randn(2, len(logprobs), generator=torch.Generator().manual_seed(5))
    return (scales[0] * logprobs + scales[1] * entropy).sum()


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen2-untied", {}),
        ("qwen3", {}),
        ("llama", {"rope_parameters": LLAMA3, "tied": False}),
        ("qwen2", {"rope_parameters": YARN}),
        ("llama", {"num_heads": 8, "num_kv_heads": 8, "vocab_size": 300}),
    ],
    ids=["llama", "qwen2", "qwen2-untied", "qwen3", "llama3-rope", "yarn-rope", "no-grouping"],
)
def test_policy_equals_transformers(
    parallel: ParallelState, tmp_path: Path, family: str, overrides: dict[str, object]
) -> None:
    folder = make_tiny_model(tmp_path, family, **overrides)  # type: ignore[arg-type]
    (model,) = load_policy(folder, parallel)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sequences = random_sequences(LENGTHS, vocab_size=model.hf_config.vocab_size)
    batch = pack(sequences)

    out = run_policy(model, batch, parallel)
    log_p = torch.cat([torch.log_softmax(reference(ids[None]).logits[0] / TEMPERATURE, -1) for ids in sequences])
    logprobs = log_p.gather(1, batch.target_ids.unsqueeze(1)).squeeze(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    torch.testing.assert_close(out.logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.entropy, entropy, atol=1e-5, rtol=0)

    actual = policy_gradients(model, random_loss(out.logprobs, out.entropy), parallel)
    random_loss(logprobs, entropy).backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    errors = {name: float((actual[name] - g).norm() / g.norm()) for name, g in expected.items()}
    assert actual.keys() == expected.keys()
    assert max(errors.values()) < 1e-5, errors


def test_policy_does_not_depend_on_packing(parallel: ParallelState, tmp_path: Path) -> None:
    (model,) = load_policy(make_tiny_model(tmp_path, "qwen2"), parallel)
    sequences = random_sequences(LENGTHS, vocab_size=512)
    together = run_policy(model, pack(sequences), parallel).logprobs
    alone = torch.cat([run_policy(model, pack([ids]), parallel).logprobs for ids in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_recomputation_changes_no_bit(parallel: ParallelState, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, "qwen3")
    batch = pack(random_sequences(LENGTHS, vocab_size=512))
    gradients = []
    for recompute in (False, True):
        (model,) = load_policy(folder, parallel, float32_config(recompute=recompute))
        assert (model.config.recompute_granularity == "full") == recompute
        out = run_policy(model, batch, parallel)
        gradients.append(policy_gradients(model, random_loss(out.logprobs, out.entropy), parallel))
    assert [name for name, kept in gradients[0].items() if not torch.equal(kept, gradients[1][name])] == []
