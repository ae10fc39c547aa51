"""The tokens that the actor's ranks record are those of the update, whatever the packing and the number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rl.batch.layout import packing_layout
from rl.batch.packing import plan_samples
from rl.batch.plan import share_of
from rl.batch.rank_batch import RankBatch
from rl.batches import Recording, RunPlace, Sample, TokenColumns, TrainedRow
from rl.cluster.actors import ActorGroup
from rl.cluster.ranks import LocalRanks
from rl.config.schema import Config
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import read_tokens, write_sampled_rows
from rl.training.actor import Actor
from tests.tiny import make_tiny_model
from tests.unit.cluster.test_actors import make_batch
from tests.update_case import update_config, update_samples


def samples() -> list[Sample]:
    """Those of `update_samples` as a rollout worker makes them."""
    return [
        Sample(
            s.trajectory_id,
            s.group_id,
            s.token_ids.numpy().astype(np.int32),
            s.loss_mask.numpy().astype(np.uint8),
            s.advantages.numpy(),
            s.rollout_logprobs.numpy(),
            np.where(s.loss_mask.numpy() > 0, 0, -1).astype(np.int32),
        )
        for s in update_samples()
    ]


def record(config: Config, folder: Path) -> tuple[dict[str, TrainedRow], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Update on two mini-batches in two epochs, recorded: what was read, and the log-probs before and after it."""
    run, rows = RunDirectory(folder), samples()
    layout = packing_layout(config, num_data_parallel=1)
    with Actor(config) as actor:

        def logprobs() -> dict[str, np.ndarray]:
            """By trajectory, one at a time."""
            found = {}
            for row in rows:
                batch = RankBatch(share_of(plan_samples([row], layout), 0), [[row]])
                (values,) = actor.compute_logprobs(batch.micro_batches)
                found[row.trajectory_id] = np.append([0.0], values.numpy()[: len(row.token_ids) - 1])
            return found

        group = ActorGroup(LocalRanks([actor]), None, config, folder, nodes=["here"])
        plan, before = plan_samples(rows, layout), logprobs()
        group.fill_old_logprobs(plan)
        group.update(plan, RunPlace(0, 10, is_recorded=True))
        group.record_tokens(run.tokens_file(1))
        after = logprobs()
    write_sampled_rows(Recording(run.tokens_file(1), RunPlace(0, 10)), [rows], lambda ids: ["x"] * len(list(ids)))
    found = {row.trajectory_id: row.trained for row in read_tokens(run, 1)}
    assert all(found.values())
    return {name: row for name, row in found.items() if row is not None}, before, after


@pytest.mark.parametrize("share_prefix", [True, False])
def test_recorded_columns_are_those_of_the_update(tmp_path: Path, share_prefix: bool) -> None:
    config = update_config(make_tiny_model(tmp_path / "model", num_layers=1))
    config.rl_config.init_kl_coef, config.rl_config.mini_batch_size, config.rl_config.epochs = 0.0, 2, 2
    config.rl_config.share_prompt_prefix = share_prefix
    found, before, after = record(config, tmp_path)
    assert len(found) == 7
    clipped = sampled = 0
    for row in samples():
        trained, mask = found[row.trajectory_id], row.loss_mask
        np.testing.assert_allclose(trained.old_logprobs, before[row.trajectory_id], atol=1e-4)
        np.testing.assert_allclose(trained.new_logprobs, after[row.trajectory_id], atol=1e-4)
        np.testing.assert_array_equal(trained.advantages, row.advantages)
        np.testing.assert_array_equal(trained.correction_weights, mask.astype(np.float32))
        assert ((trained.loss_weights > 0) == (mask > 0)).all()
        assert ((trained.entropy > 0) == (mask > 0)).all()
        assert trained.ref_logprobs is None
        assert ((trained.ratios > 0) == (mask > 0)).all()
        outside = ((trained.ratios > 1.28) & (row.advantages > 0)) | ((trained.ratios < 0.8) & (row.advantages < 0))
        np.testing.assert_array_equal(trained.is_clipped > 0, outside & (mask > 0))
        clipped, sampled = clipped + int(trained.is_clipped.sum()), sampled + int(mask.sum())
    assert 0 < clipped < sampled  # the second epoch is off-policy
    assert sum(float(row.loss_weights.sum()) for row in found.values()) == pytest.approx(2.0)  # one a mini-batch


def test_ranks_unpack_their_own_rows_and_together_all() -> None:
    """Four rows of 3 to 6 times their length as token; each prediction's value is its position in its row."""
    plan = make_batch(num_ranks=2, mini_batch_prompts=4)
    plan.weights, lengths = [1.0] * 4, {}
    for dp_rank in range(2):
        share = share_of(plan, dp_rank)
        batch = RankBatch(share, share.sources)
        batch.fill_loss(dict.fromkeys(range(4), 1.0), dict(enumerate(plan.advantages)))
        positions = [micro.position_ids.float() for micro in batch.micro_batches]
        batch.keep_update(0, [TokenColumns(p, p, p, p, p) for p in positions])
        for row in batch.trained_rows(positions):
            assert row.new_logprobs.tolist() == [0.0, *range(len(row.new_logprobs) - 1)]
            lengths[row.trajectory_id] = len(row.new_logprobs)
    assert lengths == {"s3": 3, "s4": 4, "s5": 5, "s6": 6}
