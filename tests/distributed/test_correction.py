"""Importance weights, rejection and skipped steps on two data-parallel ranks against one process."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MiniBatch
from rl.config.correction import ImportanceLevel, RolloutCorrection
from rl.training.actor import Actor
from tests.tiny import make_tiny_model
from tests.update_case import update_config, update_samples, with_logprobs

_DEADLINE_S = 120.0
CORRECTIONS = {
    "token": RolloutCorrection(rollout_rs="seq_mean_k1", rollout_rs_threshold=1.05),
    "sequence": RolloutCorrection(rollout_is=ImportanceLevel.SEQUENCE, rollout_is_threshold_lower=0.5),
    "bypass": RolloutCorrection(rollout_is=None, bypass_mode=True),
}


@dataclass
class Outcome:
    """Results of one rank."""

    metrics: dict[str, list[dict[str, float]]]
    """Metrics of two updates, by correction."""
    weights: dict[str, dict[str, Tensor]]
    """Parameters after the updates."""
    skipped: dict[str, float]
    """Metrics of an update with a NaN only in the last rank's share."""
    broken_samples: list[int]
    is_unchanged: bool


def run(rank: int, folder: Path, world_size: int = 2) -> None:
    torch.set_num_threads(1)
    metrics, weights = {}, {}
    for name, correction in CORRECTIONS.items():
        config = update_config(folder / "model")
        config.rl_config.rollout_correction = correction
        meeting = f"file://{folder / f'{name}.{world_size}'}" if world_size > 1 else None
        with Actor(config, rank=rank, world_size=world_size, init_method=meeting, num_threads=1) as actor:
            share = make_mini_batch(world_size).micro_batches[rank]
            metrics[name] = [actor.update(share) for _ in range(2)]
            weights[name] = {key: tensor.clone() for key, tensor in actor.export_hf_weights()}
            bad = make_mini_batch(world_size).micro_batches[rank]
            if rank == world_size - 1:
                bad[0].rollout_logprobs[bad[0].loss_mask.argmax()] = math.nan
            skipped = actor.update(bad)
            is_unchanged = all(torch.equal(t, weights[name][key]) for key, t in actor.export_hf_weights())
            broken = actor.broken_samples
    torch.save(Outcome(metrics, weights, skipped, broken, is_unchanged), folder / f"{world_size}.{rank}.pt")


def make_mini_batch(num_data_parallel: int) -> MiniBatch:
    """Set the engine's log-probs within ±0.3 of the old ones."""
    samples = update_samples()
    config = update_config(Path())
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=num_data_parallel)).mini_batches
    for share in with_logprobs(mini_batch).micro_batches:
        for micro in share:
            assert micro.old_logprobs is not None
            noise = ((micro.target_ids * 31 + micro.position_ids * 7) % 13).float() / 20 - 0.3
            micro.rollout_logprobs = (micro.old_logprobs + noise) * micro.loss_mask
    return mini_batch


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[Outcome]]:
    folder = tmp_path_factory.mktemp("correction")
    make_tiny_model(folder / "model", "qwen2", num_layers=2)
    num_threads = torch.get_num_threads()
    run(0, folder, world_size=1)
    torch.set_num_threads(num_threads)
    context = torch.multiprocessing.spawn(run, args=(folder,), nprocs=2, join=False)
    deadline = time.monotonic() + _DEADLINE_S
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "some rank did not end"
    finally:
        for process in context.processes:
            process.kill()
    alone, *ranks = (torch.load(folder / f"{name}.pt", weights_only=False) for name in ("1.0", "2.0", "2.1"))
    return alone, ranks


@pytest.mark.parametrize("correction", list(CORRECTIONS))
def test_metrics_and_parameters_equal_those_of_one_process(
    outcomes: tuple[Outcome, list[Outcome]], correction: str
) -> None:
    alone, ranks = outcomes
    for outcome in ranks:
        for one, other in zip(outcome.metrics[correction], alone.metrics[correction], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
        for name, tensor in alone.weights[correction].items():
            torch.testing.assert_close(outcome.weights[correction][name], tensor, atol=1e-5, rtol=0)


def test_corrections_have_an_effect(outcomes: tuple[Outcome, list[Outcome]]) -> None:
    alone, _ = outcomes
    token, sequence = alone.metrics["token"][0], alone.metrics["sequence"][0]
    assert 0 < token["rollout_corr/rollout_rs_seq_masked_fraction"] < 1
    assert 0 < sequence["rollout_corr/rollout_is_eff_sample_size"] < 1
    assert sequence["rollout_corr/rollout_is_min"] == 0.0  # out of the band
    assert alone.metrics["bypass"][1]["rollout_corr/kl"] != alone.metrics["bypass"][0]["rollout_corr/kl"]


def test_nan_on_one_rank_skips_the_step_on_all(outcomes: tuple[Outcome, list[Outcome]]) -> None:
    alone, ranks = outcomes
    for outcome in [alone, *ranks]:
        assert outcome.is_unchanged
        assert outcome.skipped["actor/skipped_steps"] == outcome.skipped["actor/broken_tokens"] == 1.0
    assert ranks[0].broken_samples == [] and len(ranks[1].broken_samples) == len(alone.broken_samples) == 1
