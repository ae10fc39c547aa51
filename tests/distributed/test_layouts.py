"""Every parallel layout against one process: the same metrics, log-probs, parameters and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from rl.algorithms.losses import LOSSES
from rl.observability.token_records import read_trained_rows
from rl.training.actor import Actor
from tests.distributed.layouts import (
    CLIP_RANGES,
    IN_BFLOAT16,
    LAYOUTS,
    TIED,
    UNTIED,
    Layout,
    Outcome,
    mini_batch,
    run_layout,
    run_layouts,
)
from tests.tiny import make_tiny_model
from tests.update_case import UpdateTrace, assert_same_updates, relative_errors

_DEADLINE_S = 240.0


@dataclass
class Results:
    folder: Path
    alone: dict[str, Outcome]
    """References by model, computed in one process."""

    def ranks(self, layout: Layout) -> list[Outcome]:
        return [
            torch.load(self.folder / f"{layout.name}.{rank}.pt", weights_only=False)
            for rank in range(layout.world_size)
        ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run all layouts in one spawn of four processes, and the reference in this process."""
    folder = tmp_path_factory.mktemp("layouts")
    make_tiny_model(folder / TIED, "qwen3", tied=True, vocab_size=509, num_layers=4)
    make_tiny_model(folder / UNTIED, "qwen2-untied", num_layers=4)
    num_threads = torch.get_num_threads()
    alone = {}
    for model in (TIED, UNTIED):
        alone[model] = run_layout(Layout(model, model), folder, rank=0, init_method=None)
    torch.set_num_threads(num_threads)
    context = torch.multiprocessing.spawn(run_layouts, args=(folder,), nprocs=4, join=False)
    deadline = time.monotonic() + _DEADLINE_S
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "some rank did not end"
    finally:
        for process in context.processes:
            process.kill()
    return Results(folder, alone)


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def test_metrics_of_every_rank_equal_those_of_one_process(results: Results, layout: Layout):
    expected = results.alone[layout.model].updates.metrics
    for outcome in results.ranks(layout):
        for one, other in zip(outcome.updates.metrics, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_logprobs_equal_those_of_one_process(results: Results, layout: Layout):
    expected = results.alone[layout.model].logprobs
    seen: set[tuple[int, ...]] = set()
    for outcome in results.ranks(layout):
        for sequence, logprobs in outcome.logprobs.items():
            torch.testing.assert_close(logprobs, expected[sequence], atol=2e-4, rtol=0)
        seen |= outcome.logprobs.keys()
    assert seen == expected.keys()


def test_gradients_norms_and_parameters_equal_those_of_one_process(results: Results, layout: Layout):
    ranks = [outcome.updates for outcome in results.ranks(layout)]
    joined = UpdateTrace(ranks[0].metrics, _join(r.gradients for r in ranks), _join(r.weights for r in ranks))
    assert_same_updates(joined, results.alone[layout.model].updates)


def test_updates_with_every_loss_equal_those_of_one_process(results: Results, layout: Layout):
    alone, ranks = results.alone[layout.model], results.ranks(layout)
    for outcome in ranks:
        for name, expected in alone.losses.items():
            assert outcome.losses[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
            assert outcome.losses[name]["actor/grad_norm"] == pytest.approx(expected["actor/grad_norm"], rel=1e-5)
            assert name == "reinforce" or 0.02 < expected["actor/pg_clipfrac"] < 0.98, name
    errors = relative_errors(_join(outcome.loss_weights for outcome in ranks), alone.loss_weights)
    assert max(errors.values()) < 1e-5, errors


def test_corrected_update_equals_that_of_one_process_and_its_ratios_are_exactly_one(results: Results, layout: Layout):
    """The forward passes for old log-probs and for training are bit-identical under any layout."""
    expected = results.alone[layout.model].corrected
    assert 0 < expected["rollout_corr/rollout_rs_seq_masked_fraction"] < 1
    assert expected["rollout_corr/rollout_is_eff_sample_size"] < 0.99
    for corrected in [expected, *(outcome.corrected for outcome in results.ranks(layout))]:
        assert corrected["actor/ppo_kl"] == corrected["actor/pg_clipfrac"] == 0.0
        assert corrected == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_updates_on_branching_rollouts_equal_those_of_one_process_row_by_row(results: Results, layout: Layout):
    """Their parameters are part of those after all updates."""
    expected = results.alone[layout.model].branched
    assert all(0 < metrics["rollout_corr/rollout_rs_seq_masked_fraction"] < 1 for metrics in expected)
    for outcome in results.ranks(layout):
        for one, alone in zip(outcome.branched, expected, strict=True):
            assert one == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_recorded_tokens_equal_those_of_one_process(results: Results, layout: Layout):
    """Each data-parallel rank writes one file, and each sample is in one of them."""
    expected, found = (
        {row.trajectory_id: row for row in read_trained_rows(results.folder / f"{name}.parquet")}
        for name in (layout.model, layout.name)
    )
    assert len(list(results.folder.glob(f"{layout.name}.rank_*.parquet"))) == layout.dp
    assert found.keys() == expected.keys() and len(found) == 7
    for name, row in found.items():
        for column in (field.name for field in fields(row) if field.name not in ("trajectory_id", "ref_logprobs")):
            ours, alone = getattr(row, column), getattr(expected[name], column)
            assert ours == pytest.approx(alone, rel=1e-3, abs=1e-3), (name, column)
    assert any(abs(row.new_logprobs - row.old_logprobs).max() > 1e-2 for row in found.values())


def test_every_loss_is_trained_under_every_layout():
    assert {"clip", "sft", *CLIP_RANGES} == set(LOSSES)  # sft: reinforce with advantage 1


def test_ranks_that_share_a_stage_export_the_same_weights(results: Results, layout: Layout):
    seen: dict[str, Tensor] = {}
    for outcome in results.ranks(layout):
        for name, tensor in outcome.updates.weights.items():
            assert torch.equal(seen.setdefault(name, tensor), tensor), name


def test_update_after_offloading_is_bit_identical(results: Results, layout: Layout):
    assert all(outcome.is_same_offloaded for outcome in results.ranks(layout))


@pytest.mark.parametrize("layout", IN_BFLOAT16, ids=lambda layout: layout.name)
def test_updates_in_bfloat16_equal_those_in_float32_but_for_rounding(results: Results, layout: Layout):
    """bfloat16 has 8 bits; a gradient from half the ranks, or counted twice, would be wrong by half or more."""
    loaded = [torch.load(results.folder / f"{layout.name}.{rank}.pt", weights_only=False) for rank in range(4)]
    assert all(is_same for _, is_same in loaded)
    expected = results.alone[layout.model].updates
    for updates, _ in loaded:
        for one, other in zip(updates.metrics, expected.metrics, strict=True):
            assert one["actor/grad_norm"] == pytest.approx(other["actor/grad_norm"], rel=0.03)
            assert one["actor/entropy"] == pytest.approx(other["actor/entropy"], rel=0.01)
    gradients, weights = (_join(getattr(updates, name) for updates, _ in loaded) for name in ("gradients", "weights"))
    whole = [torch.cat([g[name].float().flatten() for name in sorted(g)]) for g in (gradients, expected.gradients)]
    assert float((whole[0] - whole[1]).norm() / whole[1].norm()) < 0.06
    errors = relative_errors(gradients, expected.gradients)
    assert max(errors.values()) < 0.1, errors
    assert max(relative_errors(weights, expected.weights).values()) < 0.02


def test_checkpoint_of_one_process_resumes_under_every_layout(results: Results, layout: Layout):
    expected = results.alone[layout.model].resumed
    for outcome in results.ranks(layout):
        assert outcome.resumed == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_checkpoint_of_every_layout_resumes_in_one_process(results: Results, layout: Layout):
    alone = results.alone[layout.model]
    config = Layout("alone", layout.model).config(results.folder)
    with Actor(config) as actor:
        actor.load_checkpoint(results.folder / f"{layout.name}.checkpoint")
        _assert_close(dict(actor.export_hf_weights()), alone.updates.weights)
        metrics = actor.update(mini_batch(config, 1).micro_batches[0])
    assert metrics == pytest.approx(alone.resumed, rel=1e-4, abs=1e-6)


def _join(stages: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for stage in stages for name, tensor in stage.items()}


def _assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
