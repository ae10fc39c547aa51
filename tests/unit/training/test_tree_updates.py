"""Updates on rollouts that branch: shared turns change nothing but the number of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.algorithms.losses import LOSSES
from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MicroBatch, Sample
from rl.config.correction import ImportanceLevel, RolloutCorrection
from rl.training.actor import Actor
from tests.tiny import make_tiny_model
from tests.trees import tree_samples
from tests.update_case import PlainUpdate, relative_errors, trace_updates, update_config, with_logprobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", num_layers=2)


def packed(folder: Path, samples: list[Sample], max_tokens: int, *, share: bool = True) -> list[MicroBatch]:
    config = update_config(folder)
    config.rl_config.max_packing_token_size, config.rl_config.share_prompt_prefix = max_tokens, share
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    return with_logprobs(mini_batch).micro_batches[0]


def as_tensors(sample: Sample) -> Sample:
    return replace(
        sample,
        token_ids=torch.tensor(sample.token_ids, dtype=torch.int64),
        loss_mask=torch.tensor(sample.loss_mask, dtype=torch.float32),
        advantages=torch.tensor(sample.advantages),
    )


def plain_gradients(folder: Path, samples: list[Sample]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Of transformers, one row after the other."""
    plain = PlainUpdate(update_config(folder))
    metrics = plain.step([as_tensors(sample) for sample in samples])
    unclipped = max(1.0, metrics["actor/grad_norm"] / plain.config.actor_config.clip_grad)
    return metrics, {name: p.grad * unclipped for name, p in plain.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("vocab_size", [500, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_of_random_trees_are_those_of_transformers_row_by_row(folder: Path, seed: int, vocab_size: int):
    samples = tree_samples(seed, vocab_size=vocab_size)
    expected, gradients = plain_gradients(folder, samples)
    num_tokens = []
    for max_tokens in (30, 90, 2000):
        micros = packed(folder, samples, max_tokens)
        num_tokens.append(sum(micro.num_tokens for micro in micros))
        with Actor(update_config(folder), num_threads=1) as actor:
            trace = trace_updates(actor, micros)
        for name, value in expected.items():
            assert trace.metrics[0][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        errors = relative_errors({name: trace.gradients[name] for name in gradients}, gradients)
        assert max(errors.values()) < 1e-5, errors
    assert num_tokens[0] >= num_tokens[1] >= num_tokens[2]
    assert num_tokens[2] < 0.8 * sum(len(sample.token_ids) for sample in samples)


CORRECTION = RolloutCorrection(ImportanceLevel.SEQUENCE, rollout_rs="seq_mean_k1", rollout_rs_threshold=1.02)


@pytest.mark.parametrize("loss", ["gspo", "gmpo", "clip"])
def test_losses_and_corrections_of_whole_sequences_do_not_depend_on_sharing(folder: Path, loss: str):
    """The loss tokens of a sequence are then in several segments."""
    samples = tree_samples(3)
    results = []
    for share in (False, True):
        micros = packed(folder, samples, 2000, share=share)
        with Actor(update_config(folder), num_threads=1) as actor:
            actor.objective = replace(actor.objective, loss=LOSSES[loss], correction=CORRECTION)
            for micro, logprobs in zip(micros, actor.compute_logprobs(micros), strict=True):
                micro.old_logprobs = logprobs + ((micro.target_ids % 7).float() / 70 - 0.04) * micro.loss_mask
                offset = (micro.target_ids * 31 % 13).float() / 100 - 0.06
                micro.rollout_logprobs = (micro.old_logprobs + offset) * micro.loss_mask
            metrics = actor.update(micros)
            results.append((metrics, {name: tensor.clone() for name, tensor in actor.export_hf_weights()}))
    assert 0 < results[0][0]["rollout_corr/rollout_rs_seq_masked_fraction"] < 1
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
    assert max(relative_errors(results[1][1], results[0][1]).values()) < 1e-5
