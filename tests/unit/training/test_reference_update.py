"""Every advantage, loss and aggregation against the same update written out: Python numbers, transformers, autograd."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.algorithms.advantages import ADVANTAGES
from rl.algorithms.losses import LOSSES
from rl.config.schema import Config, KlPenalty, LossAggregation
from rl.data.packing import pack_samples, packing_layout
from rl.rollout.samples import make_samples
from rl.training.actor import Actor
from rl.types import Group, Prompt, StopReason, TokenSequence, ToolResult, ToolStatus, Trajectory, Turn
from tests.tiny import make_tiny_model
from tests.update_case import VOCAB_SIZE, PlainUpdate, set_logprobs, update_config

SCORES = ((1.0, 0.0, 0.25), (0.5, None, -1.0), (0.5, 0.5, 0.5))
"""Of three groups: one ordinary, one with a failed reward, one of equal scores."""
TURNS = (((5, 4), (3,), (2, 6)), ((7,), (4,), (1, 3, 2)), ((4,), (6,), (3, 3)))
"""Sampled tokens of each turn."""
SCALE = 20.0
"""Constant of seq-mean-token-sum-norm."""


def old_logprobs(targets: Tensor) -> Tensor:
    """As `set_logprobs` gives them: near those of a random model, so that some ratios are clipped."""
    return -6.2 + (targets % 7).float() / 7 - 0.4


def ref_logprobs(targets: Tensor) -> Tensor:
    return -6.0 - ((targets % 7).float() / 7 - 0.4)


def make_groups() -> list[Group]:
    """A prompt of 3 tokens, then turns with a tool's result of 2 tokens and a reward between them."""
    generator = torch.Generator().manual_seed(7)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCAB_SIZE, (count,), generator=generator).tolist()

    groups = []
    for number, (scores, members) in enumerate(zip(SCORES, TURNS, strict=True)):
        prompt, start, trajectories = Prompt(f"p{number}", [], "", "test"), tokens(3), []
        for i, (score, lengths) in enumerate(zip(scores, members, strict=True)):
            sequence, turns = TokenSequence(list(start)), []
            for k, length in enumerate(lengths):
                sampled = tokens(length)
                sequence.append_sampled(sampled, old_logprobs(torch.tensor(sampled)).tolist(), 0)
                sequence.append_context(tokens(2))
                turns.append(Turn("", length, results=[ToolResult("t", "", ToolStatus.OK, reward=0.5 * (i + k) % 1.5)]))
            trajectories.append(Trajectory(prompt, i, [sequence], turns, StopReason.FINISHED, score=score))
        groups.append(Group(prompt, trajectories))
    return groups


# The advantages, in Python numbers. A unit is (group, value, tokens): a trajectory, or a turn.

Unit = tuple[Any, float, int]


def group_values(units: list[Unit], group: Any) -> list[float]:
    return [value for other, value, _ in units if other == group]


def plain_group_norm(units: list[Unit], divide_by_std: bool) -> list[float]:
    result = []
    for group, value, _ in units:
        values = group_values(units, group)
        scale = statistics.stdev(values) + 1e-6 if divide_by_std and len(values) > 1 else 1.0
        result.append((value - statistics.fmean(values)) / scale if len(values) > 1 else 0.0)
    return result


def plain_rloo(units: list[Unit], divide_by_std: bool) -> list[float]:
    result = []
    for group, value, _ in units:
        others = group_values(units, group)
        others.remove(value)
        result.append(value - statistics.fmean(others) if others else 0.0)
    return result


def plain_whitened(units: list[Unit], divide_by_std: bool) -> list[float]:
    every_token = [value for _, value, tokens in units for _ in range(tokens)]
    mean, std = statistics.fmean(every_token), statistics.pstdev(every_token)
    return [(value - mean) / (std + 1e-6) for _, value, _ in units]


def plain_baseline(units: list[Unit], divide_by_std: bool) -> list[float]:
    centered = [(g, v - statistics.fmean(group_values(units, g)), n) for g, v, n in units]
    differing = [unit for unit in centered if any(group_values(centered, unit[0]))]
    whitened = dict(zip(map(id, differing), plain_whitened(differing, divide_by_std), strict=True))
    return [whitened.get(id(unit), 0.0) for unit in centered]


PLAIN_ADVANTAGES: dict[str, Callable[[list[Unit], bool], list[float]]] = {
    "group_norm": plain_group_norm,
    "rloo": plain_rloo,
    "reinforce_plus_plus": plain_whitened,
    "reinforce_plus_plus_baseline": plain_baseline,
}


def plain_advantages(config: Config) -> dict[str, list[float]]:
    """Of each sampled token of each trajectory that is trained on."""
    rl = config.rl_config
    estimate = PLAIN_ADVANTAGES[rl.adv_estimator]
    members = [(g, t) for g, group in enumerate(make_groups()) for t in group.trajectories if t.score is not None]
    outcome = estimate([(g, t.score, t.num_sampled) for g, t in members], rl.norm_adv_by_std)
    units: list[Unit] = []
    for g, t in members:
        for k, turn in enumerate(t.turns):
            later = [r.reward * rl.turn_reward_discount**n for n, u in enumerate(t.turns[k:]) for r in u.results]
            units.append(((g, k), sum(later), turn.num_tokens))
    of_turns = iter(estimate(units, rl.norm_adv_by_std))
    result = {}
    for (_, t), value in zip(members, outcome, strict=True):
        result[t.id] = [
            value + rl.turn_credit_coef * turn_value
            for turn, turn_value in zip(t.turns, of_turns, strict=False)
            for _ in range(turn.num_tokens)
        ]
    useful = {name.split("/")[0] for name, values in result.items() if any(values)}
    return {name: values for name, values in result.items() if name.split("/")[0] in useful}


# The losses, of the sampled tokens of one trajectory.


@dataclass
class Part:
    """The loss of each sampled token, and what is logged."""

    loss: Tensor
    clipped: Tensor


def plain_clip(logp: Tensor, old: Tensor, a: Tensor, low: float, high: float, c: float | None) -> Part:
    losses, clipped = [], []
    for ratio, advantage in zip((logp - old).exp(), a.tolist(), strict=True):
        value = float(ratio.detach())
        if advantage >= 0:
            is_clipped = advantage > 0 and value > 1 + high
            loss = -advantage * (1 + high) if is_clipped else -advantage * ratio
        else:
            is_low, is_dual = value < 1 - low, c is not None and max(value, 1 - low) > c
            is_clipped = is_low or is_dual
            loss = -advantage * (c if is_dual else 1 - low) if is_clipped else -advantage * ratio
        losses.append(torch.as_tensor(loss))
        clipped.append(float(is_clipped))
    return Part(torch.stack(losses), torch.tensor(clipped))


def plain_gspo(logp: Tensor, old: Tensor, a: Tensor, low: float, high: float, c: float | None) -> Part:
    """Where advantages are equal, the paper's sequence loss, as each token's share of it."""
    ratio = ((logp - old).sum() / len(logp)).exp()
    advantage = float(a[0])
    bounded = min(max(float(ratio.detach()), 1 - low), 1 + high)
    is_clipped = advantage * float(ratio.detach()) > advantage * bounded
    loss = torch.tensor(-advantage * bounded) if is_clipped else -advantage * ratio
    return Part(loss.expand(len(logp)), torch.full((len(logp),), float(is_clipped)))


def plain_gmpo(logp: Tensor, old: Tensor, a: Tensor, low: float, high: float, c: float | None) -> Part:
    """Algorithm 1 of the paper: minimum and clip on signed log-ratios."""
    sign = torch.sign(a)
    signed = sign * (logp - old)
    bounded = torch.minimum(signed, sign * (logp - old).clamp(-low, high))
    ratio = torch.prod((sign * bounded).exp() ** (1 / len(logp)))
    return Part(-a * ratio, (bounded != signed).float())


def plain_cispo(logp: Tensor, old: Tensor, a: Tensor, low: float, high: float, c: float | None) -> Part:
    ratio = (logp - old).exp().detach()
    weight = ratio.clamp(1 - low, 1 + high)
    return Part(-weight * a * logp, (weight != ratio).float())


def plain_reinforce(logp: Tensor, old: Tensor, a: Tensor, low: float, high: float, c: float | None) -> Part:
    return Part(-a * logp, torch.zeros(len(logp)))


PLAIN_LOSSES = {
    "clip": plain_clip,
    "gspo": plain_gspo,
    "gmpo": plain_gmpo,
    "cispo": plain_cispo,
    "reinforce": plain_reinforce,
}


def plain_kl(logp: Tensor, ref: Tensor, kind: KlPenalty) -> Tensor:
    d = logp - ref
    if kind is KlPenalty.K1:
        return (d.detach() * d) - (d.detach() * d).detach() + d.detach()  # value d, gradient d
    return d**2 / 2 if kind is KlPenalty.K2 else (-d).exp() - 1 + d


def plain_step(plain: PlainUpdate) -> dict[str, float]:
    """The whole step: advantages, then one trajectory after the other, no packing, no padding."""
    rl = plain.config.rl_config
    advantages = plain_advantages(plain.config)
    trajectories = [t for group in make_groups() for t in group.trajectories if t.id in advantages]
    num_tokens, count = sum(t.num_sampled for t in trajectories), len(trajectories)
    names = ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
    sums = dict.fromkeys(names, 0.0)
    plain.adam.zero_grad()
    for trajectory in trajectories:
        (sequence,) = trajectory.sequences
        is_sampled = torch.tensor(sequence.loss_mask[1:], dtype=torch.bool)
        token_ids = torch.tensor(sequence.token_ids)
        logp, entropy = (x[is_sampled] for x in plain.logprobs_and_entropy(token_ids))
        targets = token_ids[1:][is_sampled]
        old, a = old_logprobs(targets), torch.tensor(advantages[trajectory.id])
        part = PLAIN_LOSSES[rl.policy_loss](logp, old, a, rl.clip_ratio_low, rl.clip_ratio_high, rl.clip_ratio_c)
        kl = plain_kl(logp, ref_logprobs(targets), rl.kl_penalty)
        weight = {
            LossAggregation.TOKEN_MEAN: 1 / num_tokens,
            LossAggregation.SEQ_MEAN_TOKEN_MEAN: 1 / (count * len(logp)),
            LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM: 1 / (count * SCALE),
        }[rl.loss_agg_mode]
        ((part.loss + rl.init_kl_coef * kl - rl.entropy_coeff * entropy) * weight).sum().backward()
        for name, term in zip(names, (part.loss, kl, entropy, old - logp, part.clipped), strict=True):
            sums[name] += float(term.detach().sum()) * weight
    norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), plain.config.actor_config.clip_grad)
    plain.adam.step()
    return sums | {"actor/grad_norm": float(norm)}


def megatron_step(actor: Actor, config: Config) -> dict[str, float]:
    """The same through the project: samples, packing with shared prompts, the actor."""
    samples = make_samples(make_groups(), config, {})
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    for micro in mini_batch.micro_batches[0]:
        set_logprobs(micro)
    return actor.update(mini_batch.micro_batches[0], kl_coef=config.rl_config.init_kl_coef)


CASES: dict[str, dict[str, Any]] = {
    "clip": {},
    "dual-clip": {"clip_ratio_c": 1.05},
    "gspo": {"policy_loss": "gspo", "clip_ratio_low": 0.01, "clip_ratio_high": 0.02},
    "gmpo": {"policy_loss": "gmpo", "clip_ratio_low": 0.1, "clip_ratio_high": 0.15},
    "cispo": {"policy_loss": "cispo", "clip_ratio_low": 1.0},
    "reinforce": {"policy_loss": "reinforce"},
    "dr-grpo": {"norm_adv_by_std": False, "loss_agg_mode": LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM},
    "token-mean": {"loss_agg_mode": LossAggregation.TOKEN_MEAN},
    "rloo": {"adv_estimator": "rloo", "kl_penalty": KlPenalty.K1},
    "reinforce++": {"adv_estimator": "reinforce_plus_plus", "kl_penalty": KlPenalty.K2},
    "reinforce++-baseline": {"adv_estimator": "reinforce_plus_plus_baseline", "kl_penalty": KlPenalty.K3},
    "turns": {"turn_credit_coef": 0.5, "turn_reward_discount": 0.8},
    "turns-rloo-gmpo": {"turn_credit_coef": 0.5, "adv_estimator": "rloo", "policy_loss": "gmpo"},
    "turns-reinforce++": {"turn_credit_coef": 0.5, "adv_estimator": "reinforce_plus_plus", "policy_loss": "cispo"},
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", num_layers=2)


@pytest.mark.parametrize("case", CASES)
def test_update_equals_the_one_written_out(model_folder: Path, case: str):
    config = update_config(model_folder)
    config.rl_config.loss_agg_mode = LossAggregation.SEQ_MEAN_TOKEN_MEAN
    config.rl_config.loss_scale_factor = SCALE
    for key, value in CASES[case].items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    plain, other = PlainUpdate(config), deepcopy(config)
    other.rl_config.init_kl_coef = 9.0  # the weight that comes with the update is the one that counts
    with Actor(other) as actor:
        for _ in range(3):
            expected, metrics = plain_step(plain), megatron_step(actor, config)
            for name, value in expected.items():
                assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
            if config.rl_config.policy_loss != "reinforce":
                assert 0.02 < metrics["actor/pg_clipfrac"] < 0.98
        weights = plain.weights()
        for name, tensor in actor.export_hf_weights():
            torch.testing.assert_close(
                tensor, weights[name], atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_every_advantage_loss_and_aggregation_has_a_case():
    def values(key: str, default: Any) -> set[Any]:
        return {case.get(key, default) for case in CASES.values()}

    assert values("adv_estimator", "group_norm") == set(ADVANTAGES) == set(PLAIN_ADVANTAGES)
    assert values("policy_loss", "clip") | {"sft"} == set(LOSSES)
    assert values("loss_agg_mode", LossAggregation.SEQ_MEAN_TOKEN_MEAN) == set(LossAggregation)
    assert values("kl_penalty", KlPenalty.LOW_VAR_KL) == set(KlPenalty)
