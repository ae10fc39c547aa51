from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.batch.groups import plan_batch
from rl.batch.layout import PackingLayout, packing_layout
from rl.batch.packing import pack_samples, plan_samples
from rl.batch.rank_batch import RankBatch
from rl.batches import BatchPlan, RowAdvantages, RunPlace, Sample, Share, UpdateReport
from rl.cluster.actors import ActorGroup
from rl.cluster.ranks import LocalRanks
from rl.config.schema import Config, KlControl, KlPenalty, LossAggregation
from rl.training.actor import Actor
from rl.types import Group, Prompt, StopReason, TokenSequence, Trajectory
from rl.weight_sync.shared_memory import Shard
from tests.samples import headers
from tests.tiny import make_tiny_model
from tests.update_case import update_config, update_samples

PLACE = RunPlace(3, 10)


def make_batch(
    *, num_ranks: int, epochs: int = 1, mini_batch_prompts: int = 2, layout: PackingLayout | None = None
) -> BatchPlan:
    """Four groups of one sample of 3, 4, 5 and 6 tokens."""
    samples = [
        Sample(f"s{n}", f"s{n}", np.full(n, n), np.ones(n, np.uint8), np.ones(n), np.zeros(n)) for n in range(3, 7)
    ]
    layout = layout or PackingLayout(num_ranks, max_tokens=6, mini_batch_prompts=mini_batch_prompts, epochs=epochs)
    return plan_samples(samples, layout)


class Rank:
    """Remembers what it was given; its log-probs are minus the token ids."""

    def __init__(
        self, metrics: list[dict[str, float]] | None = None, shard: Shard | None = None, *, dp_rank: int = 0
    ) -> None:
        self.dp_rank, self.answers, self.shard = dp_rank, iter(metrics or []), shard
        self.given: list[list[int]] = []
        """The token ids of each update."""
        self.num_passes = 0
        self.called: list[str] = []
        self.kl_coefs: list[float] = []
        self.places: list[RunPlace] = []
        self.broken_samples: list[int] = []
        self.kl_penalty = KlPenalty.K1

    def load_batch(self, share: Share, sources: list[list[Sample]]) -> None:
        self.batch = RankBatch(share, sources)

    def batch_logprobs(self) -> list[Tensor]:
        self.num_passes += 1
        return [-micro.token_ids.float() for micro in self.batch.micro_batches]

    def fill_old_logprobs(self) -> None:
        self.batch.fill("old_logprobs", self.batch_logprobs())

    def fill_ref_logprobs(self, values: list[Tensor]) -> None:
        self.batch.fill("ref_logprobs", values)

    def kl_sums(self) -> dict[int, float]:
        self.batch.fill("ref_logprobs", self.batch_logprobs())
        return self.batch.kl_sums(self.kl_penalty)

    def fill_loss(self, weights: dict[int, float], advantages: dict[int, RowAdvantages]) -> None:
        self.batch.fill_loss(weights, advantages)

    def update_on(self, mini_batch: int, place: RunPlace, kl_coef: float) -> dict[str, float]:
        self.places.append(place)
        self.kl_coefs.append(kl_coef)
        self.given.append([int(i) for micro in self.batch.mini_batches[mini_batch] for i in micro.token_ids])
        return next(self.answers)

    def save_checkpoint(self, directory: Path) -> None:
        self.called.append("save")

    def load_checkpoint(self, directory: Path) -> None:
        self.called.append("load")

    def publish(self, directory: Path, version: int, with_checksum: bool) -> Shard | None:
        self.called.append(f"publish {version} {with_checksum}")
        return self.shard


def make_group(members: list[Rank], references: list[Rank] | None = None, **settings: object) -> ActorGroup:
    config = Config()
    for key, value in settings.items():
        setattr(config.rl_config, key, value)
    return ActorGroup(
        LocalRanks(members),
        LocalRanks(references) if references else None,
        config,
        Path("/dev/shm/none"),
        nodes=["here"] * len(members),
    )


def test_update_gives_each_rank_the_share_of_its_data_parallel_rank() -> None:
    """Tensor and pipeline parallel 2: ranks 0 1 4 5 have data-parallel rank 0, ranks 2 3 6 7 have 1."""
    members = [Rank([{"actor/pg_loss": 1.0}], dp_rank=number // 2 % 2) for number in range(8)]
    group = make_group(members)
    assert group.num_data_parallel == 2
    group.update(make_batch(num_ranks=2, mini_batch_prompts=4), PLACE)
    # 5 + 4 tokens on one rank, 6 + 3 on the other.
    assert members[0].given == [[5] * 5 + [4] * 4]
    assert members[2].given == [[6] * 6 + [3] * 3]
    for number, rank in enumerate(members):
        assert rank.given == members[0 if number in (0, 1, 4, 5) else 2].given, number


def test_update_averages_metrics_over_optimizer_steps_and_keeps_the_largest_maximum() -> None:
    first = {"actor/pg_loss": 1.0, "training/rollout_probs_diff_max": 0.5}
    second = {"actor/pg_loss": 2.0, "training/rollout_probs_diff_max": 0.25}
    report = make_group([Rank([first, second])]).update(make_batch(num_ranks=1), PLACE)
    assert report == UpdateReport({"actor/pg_loss": 1.5, "training/rollout_probs_diff_max": 0.5})


def test_update_takes_every_optimizer_step_at_the_place_of_the_runs_step() -> None:
    rank = Rank([{}] * 6)
    make_group([rank]).update(make_batch(num_ranks=1, epochs=3), PLACE)
    assert rank.places == [PLACE] * 6


def test_update_makes_means_of_what_a_sum_over_tokens_by_a_constant_weighs() -> None:
    """Four samples of 2 + 3 + 4 + 5 loss tokens by a constant of 7: the weights sum to 14 / (4 x 7) = 0.5."""
    metrics = {"actor/entropy": 1.0, "actor/ppo_kl": 0.25, "actor/pg_clipfrac": 0.125, "actor/pg_loss": 3.0}
    layout = PackingLayout(
        1, 6, mini_batch_prompts=4, loss_aggregation=LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM, loss_scale=7.0
    )
    report = make_group([Rank([metrics])]).update(make_batch(num_ranks=1, layout=layout), PLACE)
    assert report.metrics == {
        "actor/entropy": pytest.approx(2.0),
        "actor/ppo_kl": pytest.approx(0.5),
        "actor/pg_clipfrac": pytest.approx(0.25),
        "actor/pg_loss": 3.0,
    }


def test_update_adds_counts_up_and_leaves_out_what_is_not_finite() -> None:
    first = {"actor/pg_loss": math.nan, "actor/grad_norm": math.inf, "actor/skipped_steps": 1.0, "a/b_min": 3.0}
    second = {"actor/pg_loss": 2.0, "actor/grad_norm": 1.0, "actor/skipped_steps": 0.0, "a/b_min": 4.0}
    metrics = make_group([Rank([first, second])]).update(make_batch(num_ranks=1), PLACE).metrics
    assert metrics == {"actor/pg_loss": 2.0, "actor/grad_norm": 1.0, "actor/skipped_steps": 1.0, "a/b_min": 3.0}


def test_update_names_the_trajectories_of_skipped_steps() -> None:
    """Samples s3 to s6 in two mini-batches of two; the second rank found number 1 of each to be broken."""
    good, bad = {"actor/skipped_steps": 0.0}, {"actor/skipped_steps": 1.0}
    members = [Rank([good, bad]), Rank([good, bad], dp_rank=1)]
    members[1].broken_samples = [1]
    assert make_group(members).update(make_batch(num_ranks=2), PLACE).offending == ["s6"]
    members = [Rank([good, bad]), Rank([good, bad], dp_rank=1)]  # only the gradient was not finite: it may be any
    assert make_group(members).update(make_batch(num_ranks=2), PLACE).offending == ["s5", "s6"]


@pytest.mark.parametrize(("mini_batch_prompts", "bypass_mode"), [(4, False), (2, True)])
def test_old_logprobs_are_left_out_where_none_are_needed(mini_batch_prompts: int, bypass_mode: bool) -> None:
    rank = Rank()
    group = make_group([rank])
    group.config.rl_config.rollout_correction.bypass_mode = bypass_mode
    group.fill_old_logprobs(make_batch(num_ranks=1, mini_batch_prompts=mini_batch_prompts))
    assert rank.num_passes == 0


def test_old_logprobs_are_computed_once_for_all_epochs() -> None:
    rank = Rank([{}] * 6)
    group, plan = make_group([rank]), make_batch(num_ranks=1, epochs=3)
    group.fill_old_logprobs(plan)
    for micro in rank.batch.micro_batches:
        assert torch.equal(micro.old_logprobs, -micro.token_ids.float())
    group.update(plan, PLACE)
    assert rank.num_passes == 1
    assert rank.given == [*rank.given[:2] * 3]


def test_ref_logprobs_of_every_share_are_its_own_references() -> None:
    members = [Rank(dp_rank=number // 2) for number in range(4)]
    references = [Rank(dp_rank=number // 2) for number in range(4)]
    group = make_group(members, references)
    assert group.fill_ref_logprobs(make_batch(num_ranks=2, mini_batch_prompts=4)) == {}
    for rank in members:
        for micro in rank.batch.micro_batches:
            assert torch.equal(micro.ref_logprobs, -micro.token_ids.float())
            assert micro.old_logprobs is None


def test_publish_sends_a_checksum_the_first_time_alone() -> None:
    members = [Rank(shard=Shard(Path("a"), 1, "0f")), Rank()]  # the second is no writer
    group = make_group(members)
    first, second = group.publish(0), group.publish(1)
    assert (first.version, first.paths, second.paths) == (0, ("a",), ("a",))
    assert int(first.checksum or "", 16) == 15
    assert second.checksum is None
    assert members[0].called == ["publish 0 True", "publish 1 False"]


def kl_groups() -> list[Group]:
    """Two trajectories of a prompt, sampled tokens 2, 3 and 4, and one whose reward failed."""
    prompt = Prompt("p", [], "", "test")
    group = Group(prompt, [])
    for number, (tokens, logprobs, score) in enumerate(
        [([2, 3], [-0.5, -1.0], 1.0), ([4], [-2.0], 0.0), ([5], [-1.0], None)]
    ):
        sequence = TokenSequence([1])
        sequence.append_sampled(tokens, logprobs, 0)
        group.trajectories.append(Trajectory(prompt, number, [sequence], [], StopReason.FINISHED, score=score))
    return [group]


def kl_plan(config: Config, num_data_parallel: int = 1) -> BatchPlan:
    return plan_batch(headers(kl_groups()), config, packing_layout(config, num_data_parallel=num_data_parallel), {})


def test_kl_penalty_sums_the_estimates_of_each_trajectory() -> None:
    """A reference's log-prob is minus the token before. k1: (-0.5 + 1) + (-1 + 2) = 1.5, and -2 + 1 = -1."""
    members, references = [Rank(), Rank(dp_rank=1)], [Rank(), Rank(dp_rank=1)]
    group = make_group(members, references, init_kl_coef=0.1, use_kl_in_reward=True)
    plan = kl_plan(group.config, num_data_parallel=2)
    metrics = group.fill_ref_logprobs(plan)
    assert [t.kl_penalty for t in plan.members] == [pytest.approx(0.15), pytest.approx(-0.1)]
    assert metrics == {
        "actor/reward_kl_penalty": pytest.approx(0.5 / 3),
        "actor/reward_kl_penalty_coeff": pytest.approx(0.1),
    }
    assert not any(hasattr(rank, "batch") for rank in members)  # not in the loss as well: nothing to load yet


def test_kl_penalty_is_0_where_the_term_is_in_the_loss() -> None:
    group = make_group([Rank()], [Rank()], init_kl_coef=0.1)
    plan = kl_plan(group.config)
    assert group.fill_ref_logprobs(plan) == {}
    assert [t.kl_penalty for t in plan.members] == [0.0, 0.0]


def test_adaptive_weight_of_the_loss_term_follows_the_steps_and_is_kept_in_checkpoints(tmp_path: Path) -> None:
    """Twice the target, bounded to 0.2, over 4 trajectories of a horizon of 8: each step adds a tenth."""
    settings = {"init_kl_coef": 1.0, "kl_ctrl_type": KlControl.ADAPTIVE, "kl_target": 0.5, "kl_horizon": 8.0}
    rank = Rank([{"actor/kl": 1.0, "actor/kl_loss": 0.01}] * 4)
    group = make_group([rank], [Rank()], **settings)
    reports = [group.update(make_batch(num_ranks=1), PLACE) for _ in range(2)]  # two optimizer steps each
    assert rank.kl_coefs == [1.0, 1.0, pytest.approx(1.1), pytest.approx(1.1)]
    assert [r.metrics["actor/kl_coef"] for r in reports] == [1.0, pytest.approx(1.1)]
    group.save_checkpoint(tmp_path)
    resumed = make_group([Rank()], [Rank()], **settings)
    resumed.load_checkpoint(tmp_path)
    assert resumed.kl.value == group.kl.value == pytest.approx(1.21)


def test_fixed_weight_of_the_loss_term_leaves_nothing_in_checkpoints(tmp_path: Path) -> None:
    rank = Rank([{"actor/kl": 9.0}])
    group = make_group([rank], [Rank()], init_kl_coef=0.5)
    group.update(make_batch(num_ranks=1, mini_batch_prompts=4), PLACE)
    group.save_checkpoint(tmp_path)
    assert rank.kl_coefs == [0.5] and group.kl.value == 0.5
    assert list(tmp_path.iterdir()) == []


def test_kl_penalty_of_a_real_reference_is_that_of_transformers(tmp_path: Path) -> None:
    config = update_config(make_tiny_model(tmp_path / "model", num_layers=2))
    config.rl_config.use_kl_in_reward, config.rl_config.kl_penalty = True, KlPenalty.K3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).requires_grad_(False)
    expected = []
    for trajectory in kl_groups()[0].trajectories[:2]:
        (sequence,) = trajectory.sequences
        token_ids = torch.tensor(sequence.token_ids, dtype=torch.int64)
        logits = model(token_ids[None]).logits[0, :-1] / config.generate_config.sampling_config.temperature
        ref = logits.log_softmax(-1).gather(1, token_ids[1:, None])[:, 0]
        difference = torch.tensor(sequence.logprobs[1:]) - ref
        expected.append(0.1 * float(((-difference).exp() - 1 + difference).sum()))
    plan = kl_plan(config)
    with Actor(config, loss="reference") as reference:
        group = ActorGroup(LocalRanks([Rank()]), LocalRanks([reference]), config, tmp_path, nodes=["here"])
        group.fill_ref_logprobs(plan)
    assert [t.kl_penalty for t in plan.members] == [pytest.approx(e, rel=1e-4) for e in expected]


@pytest.mark.parametrize("aggregation", LossAggregation)
def test_adaptive_weight_reads_nats_per_token_whatever_the_aggregation(
    tmp_path: Path, aggregation: LossAggregation
) -> None:
    """Five times the target of 0.1: bounded to 0.2, over 7 trajectories of a horizon of 14, that is a tenth more."""
    config = update_config(make_tiny_model(tmp_path / "model", num_layers=1))
    rl = config.rl_config
    rl.loss_agg_mode, rl.loss_scale_factor, rl.kl_penalty = aggregation, 100.0, KlPenalty.K1
    rl.init_kl_coef, rl.kl_ctrl_type, rl.kl_target, rl.kl_horizon = 1.0, KlControl.ADAPTIVE, 0.1, 14.0
    with Actor(config) as actor:
        reference = Rank()

        def half_a_nat_less() -> list[Tensor]:
            micros = reference.batch.micro_batches
            return [
                logprobs - 0.5 * micro.loss_mask
                for micro, logprobs in zip(micros, actor.compute_logprobs(micros), strict=True)
            ]

        reference.batch_logprobs = half_a_nat_less
        group = ActorGroup(LocalRanks([actor]), LocalRanks([reference]), config, tmp_path, nodes=["here"])
        plan = plan_samples(update_samples(), packing_layout(config, num_data_parallel=1))
        group.fill_ref_logprobs(plan)
        metrics = group.update(plan, PLACE).metrics
    assert metrics["actor/kl"] == pytest.approx(0.5, rel=1e-4)
    is_sum = aggregation is LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM
    # 131 tokens, less 7 prompts of 4 and results of 2, of which the shortest has one in its prompt: 90 loss tokens.
    assert metrics["actor/kl_loss"] == pytest.approx(0.5 * 90 / 700 if is_sum else 0.5, rel=1e-4)
    assert 4.0 < metrics["actor/entropy"] < 6.3  # of 512 words, not a fraction of that
    assert group.kl.value == pytest.approx(1.1)


def test_mean_per_token_counts_tokens_and_not_trajectories(tmp_path: Path) -> None:
    """One trajectory of 2 loss tokens at 1 nat, one of 3 at 0: 2/5, where the mean over trajectories is 1/2."""
    config = update_config(make_tiny_model(tmp_path / "model", num_layers=1))
    config.rl_config.loss_agg_mode, config.rl_config.kl_penalty = LossAggregation.SEQ_MEAN_TOKEN_MEAN, KlPenalty.K1
    samples = [
        Sample(
            f"{n}/0",
            str(n),
            torch.arange(3, 4 + n),
            torch.tensor([0.0] + [1.0] * n),
            torch.ones(n + 1),
            torch.zeros(n + 1),
        )
        for n in (2, 3)
    ]
    with Actor(config) as actor:
        (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
        (micros,) = mini_batch.micro_batches
        for micro, logprobs in zip(micros, actor.compute_logprobs(micros), strict=True):
            micro.ref_logprobs = logprobs - (micro.sample_ids == 0) * micro.loss_mask
        metrics = actor.update(micros)
    assert metrics["actor/kl"] == pytest.approx(0.4, rel=1e-4)
    assert metrics["actor/kl_loss"] == pytest.approx(0.5, rel=1e-4)
