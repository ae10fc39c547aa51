"""Updates do not depend on how samples are split, ordered, padded and shared, nor on recomputation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import Sample
from rl.training.actor import Actor
from tests.tiny import make_tiny_model
from tests.update_case import (
    UpdateTrace,
    assert_same_updates,
    trace_updates,
    update_config,
    update_samples,
    with_logprobs,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", num_layers=2)


@pytest.fixture(scope="module")
def one_by_one(folder: Path) -> UpdateTrace:
    """One sample per micro-batch."""
    return updates(folder, update_samples(), max_tokens=2)


def updates(
    folder: Path, samples: list[Sample], *, max_tokens: int = 48, share: bool = False, recompute: str = "none"
) -> UpdateTrace:
    config = update_config(folder, recompute_granularity=recompute)
    config.rl_config.max_packing_token_size = max_tokens
    config.rl_config.share_prompt_prefix = share
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    with Actor(config, num_threads=1) as actor:
        return trace_updates(actor, with_logprobs(mini_batch).micro_batches[0])


def padded(sample: Sample, length: int) -> Sample:
    """Append unsampled tokens up to `length`."""
    missing = length - len(sample.token_ids)
    return Sample(
        sample.trajectory_id,
        sample.group_id,
        token_ids=torch.cat([sample.token_ids, torch.zeros(missing, dtype=torch.int64)]),
        loss_mask=torch.cat([sample.loss_mask, torch.zeros(missing)]),
        advantages=torch.cat([sample.advantages, torch.zeros(missing)]),
        rollout_logprobs=torch.cat([sample.rollout_logprobs, torch.zeros(missing)]),
    )


def after_system_prompt(sample: Sample) -> Sample:
    """Prepend 20 tokens, the same for all samples."""
    zeros = torch.zeros(20)
    return Sample(
        sample.trajectory_id,
        sample.group_id,
        token_ids=torch.cat([torch.arange(50, 70), sample.token_ids]),
        loss_mask=torch.cat([zeros, sample.loss_mask]),
        advantages=torch.cat([zeros, sample.advantages]),
        rollout_logprobs=torch.cat([zeros, sample.rollout_logprobs]),
    )


@pytest.mark.parametrize("max_tokens", [20, 48, 1000])
@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prompts"])
def test_updates_do_not_depend_on_the_token_budget(
    folder: Path, one_by_one: UpdateTrace, max_tokens: int, share: bool
) -> None:
    assert_same_updates(updates(folder, update_samples(), max_tokens=max_tokens, share=share), one_by_one)


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prompts"])
def test_updates_do_not_depend_on_the_order_of_samples(folder: Path, one_by_one: UpdateTrace, share: bool) -> None:
    samples = update_samples()
    shuffled = [samples[i] for i in (4, 0, 6, 3, 1, 5, 2)]
    assert_same_updates(updates(folder, shuffled, share=share), one_by_one)


def test_updates_do_not_depend_on_padding(folder: Path, one_by_one: UpdateTrace) -> None:
    samples = [padded(sample, 40) for sample in update_samples()]
    assert_same_updates(updates(folder, samples, max_tokens=120), one_by_one)


def test_updates_do_not_depend_on_sharing_what_all_prompts_begin_with(folder: Path) -> None:
    samples = [after_system_prompt(sample) for sample in update_samples()]
    expected = updates(folder, samples, max_tokens=2)
    for max_tokens in (80, 1000):
        assert_same_updates(updates(folder, samples, max_tokens=max_tokens, share=True), expected)


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prompts"])
def test_updates_do_not_depend_on_recomputation(folder: Path, one_by_one: UpdateTrace, share: bool) -> None:
    assert_same_updates(updates(folder, update_samples(), share=share, recompute="full"), one_by_one)
