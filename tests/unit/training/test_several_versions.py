"""The off-policy correction of trajectories that several versions of the weights have sampled, against autograd."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.config.correction import ImportanceLevel, RolloutCorrection
from rl.config.schema import Config, LossAggregation
from rl.observability.staleness import staleness_metrics
from rl.rollout.headers import header_of_group
from rl.training.actor import Actor
from rl.types import Group, Prompt, StopReason, TokenSequence, Trajectory
from tests.samples import make_samples
from tests.tiny import make_tiny_model
from tests.update_case import VOCAB_SIZE, PlainUpdate, update_config

SPANS = ((5, 0), (4, 1), (3, 2))
"""Tokens of each span and the version that sampled it. The second follows a publish within a turn, the third a
tool's result. Version 2 is trained."""
SCORES = ((1.0, 0.0), (0.0, 0.5))
THRESHOLD = 1.03


def make_config(folder: Path, correction: RolloutCorrection) -> Config:
    config = update_config(folder)
    config.rl_config.entropy_coeff = config.rl_config.init_kl_coef = 0.0
    config.rl_config.loss_agg_mode = LossAggregation.TOKEN_MEAN
    config.rl_config.rollout_correction = correction
    return config


def older(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A version whose weights differ a little."""
    torch.manual_seed(seed)
    changed = deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return changed


def logprobs(model: PreTrainedModel, token_ids: Tensor, temperature: float) -> Tensor:
    logits = model(token_ids[None]).logits[0, :-1] / temperature
    return logits.log_softmax(-1).gather(1, token_ids[1:, None])[:, 0]


def make_groups(versions: list[PreTrainedModel], temperature: float) -> list[Group]:
    generator = torch.Generator().manual_seed(11)
    groups = []
    for number, scores in enumerate(SCORES):
        prompt = Prompt(f"p{number}", [], "", "test")
        start = torch.randint(3, VOCAB_SIZE, (4,), generator=generator)
        trajectories = []
        for index, score in enumerate(scores):
            rest = torch.randint(3, VOCAB_SIZE, (14,), generator=generator)  # with a result of 2 tokens
            token_ids = torch.cat([start, rest])
            with torch.no_grad():
                of_version = [logprobs(model, token_ids, temperature) for model in versions]
            sequence, place = TokenSequence(start.tolist()), 4
            for length, version in SPANS:
                if version == 2:
                    sequence.append_context(token_ids[place : place + 2].tolist())
                    place += 2
                own = of_version[version][place - 1 : place - 1 + length]
                sequence.append_sampled(token_ids[place : place + length].tolist(), own.tolist(), version)
                place += length
            trajectories.append(Trajectory(prompt, index, [sequence], [], StopReason.FINISHED, score=score))
        groups.append(Group(prompt, trajectories))
    return groups


@pytest.mark.parametrize(
    "correction",
    [
        RolloutCorrection(ImportanceLevel.TOKEN, rollout_is_threshold=THRESHOLD),
        RolloutCorrection(ImportanceLevel.TOKEN, rollout_is_threshold=1.1, rollout_is_threshold_lower=0.95),
        RolloutCorrection(ImportanceLevel.SEQUENCE, rollout_is_threshold=THRESHOLD),
    ],
    ids=["truncated", "band", "sequence"],
)
def test_each_token_is_weighed_by_the_version_that_sampled_it(tmp_path: Path, correction: RolloutCorrection) -> None:
    config = make_config(make_tiny_model(tmp_path / "qwen2", "qwen2", num_layers=2), correction)
    temperature = config.generate_config.sampling_config.temperature
    plain = PlainUpdate(config)
    groups = make_groups([older(plain.model, 1), older(plain.model, 2), plain.model], temperature)
    headers = [header_of_group(group) for group in groups]
    assert staleness_metrics(headers, version=2, now=0.0)["rollout/staleness/mean"] == (5 * 2 + 4 * 1) / 12

    samples = make_samples(groups, config, {})
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    with Actor(config) as actor:
        metrics = actor.update(mini_batch.micro_batches[0])
        weights = dict(actor.export_hf_weights())

    plain.adam.zero_grad()
    all_weights = []
    total = sum(length for length, _ in SPANS) * 4
    for scores, group in zip(SCORES, groups, strict=True):
        spread = abs(scores[0] - scores[1]) / 2**0.5 + 1e-6  # of two scores, with Bessel's correction
        for score, trajectory in zip(scores, group.trajectories, strict=True):
            (sequence,) = trajectory.sequences
            is_sampled = torch.tensor(sequence.loss_mask[1:], dtype=torch.bool)
            now = logprobs(plain.model, torch.tensor(sequence.token_ids, dtype=torch.int64), temperature)[is_sampled]
            then = torch.tensor(sequence.logprobs[1:])[is_sampled]
            ratio = (now.detach() - then).exp()
            if correction.rollout_is is ImportanceLevel.SEQUENCE:
                ratio = ratio.prod().expand(len(ratio))
            weight = ratio.clamp(max=correction.rollout_is_threshold)
            if correction.rollout_is_threshold_lower is not None:
                inside = (ratio >= correction.rollout_is_threshold_lower) & (ratio <= correction.rollout_is_threshold)
                weight = ratio * inside
            advantage = (score - sum(scores) / 2) / spread
            (-weight * advantage * now / total).sum().backward()  # the ratio to itself is 1, its gradient that of log p
            all_weights.append(weight)
    norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), config.actor_config.clip_grad)
    plain.adam.step()

    used = torch.cat(all_weights)
    assert used.min() < 0.99  # the versions differ, and
    assert used.max() < correction.rollout_is_threshold + 1e-6  # some weights are bounded
    assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(float(used.mean()), rel=1e-4)
    assert metrics["actor/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, expected in plain.weights().items():
        torch.testing.assert_close(weights[name], expected, atol=1e-5, rtol=0)
