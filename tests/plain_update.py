"""The whole update written out, for every advantage, loss and correction: Python numbers, transformers, autograd.

One trajectory after the other, without packing, padding or micro-batches, and without the project's formulas.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.config.correction import ImportanceLevel, RolloutCorrection
from rl.config.schema import Config, KlPenalty, LossAggregation
from rl.types import Group, Prompt, StopReason, TokenSequence, ToolResult, ToolStatus, Trajectory, Turn
from tests.update_case import VOCAB_SIZE, PlainUpdate

SCORES = ((1.0, 0.0, 0.25), (0.5, None, -1.0), (0.5, 0.5, 0.5))
"""Scores of three groups: one ordinary, one with a failed reward, one with equal scores."""
TURNS = (((5, 4), (3,), (2, 6)), ((7,), (4,), (1, 3, 2)), ((4,), (6,), (3, 3)))
"""Number of sampled tokens of each turn."""
SCALE = 20.0
"""Constant of seq-mean-token-sum-norm."""


def old_logprobs(targets: Tensor) -> Tensor:
    """As set by `set_logprobs`: near those of a random model, so that some ratios are clipped."""
    return -6.2 + (targets % 7).float() / 7 - 0.4


def rollout_logprobs(targets: Tensor) -> Tensor:
    """The engine's log-probs, up to 0.6 from the old ones."""
    return old_logprobs(targets) + (targets * 31 % 13).float() / 10 - 0.6


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
                sequence.append_sampled(sampled, rollout_logprobs(torch.tensor(sampled)).tolist(), 0)
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
    """Advantage of each sampled token of each trained trajectory."""
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
    """The paper's sequence loss, as each token's share of it; where advantages differ, its GSPO-token."""
    ratio = ((logp - old).sum() / len(logp)).exp()
    value = float(ratio.detach())
    bounded = min(max(value, 1 - low), 1 + high)
    losses, clipped = [], []
    for token, advantage in zip(logp, a.tolist(), strict=True):
        is_clipped = advantage * value > advantage * bounded
        own = value * (token - token.detach()).exp()
        free = -advantage * (ratio if len(set(a.tolist())) == 1 else own)
        losses.append(torch.tensor(-advantage * bounded) if is_clipped else free)
        clipped.append(float(is_clipped))
    return Part(torch.stack(losses), torch.tensor(clipped))


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


def plain_correction(settings: RolloutCorrection, d: Tensor) -> tuple[Tensor, bool]:
    """Weights of the sampled tokens of one trajectory, and whether it is kept; d is log(actor / engine) of each."""
    ratios, lower, upper = d.exp().tolist(), settings.rollout_is_threshold_lower, settings.rollout_is_threshold
    if settings.rollout_is is ImportanceLevel.SEQUENCE:
        ratios = [math.prod(ratios)] * len(ratios)
    if settings.rollout_is is None:
        weights = [1.0] * len(ratios)
    elif lower is None:
        weights = [min(ratio, upper) for ratio in ratios]
    else:
        weights = [ratio if lower <= ratio <= upper else 0.0 for ratio in ratios]
    if settings.rollout_rs is None:
        return torch.tensor(weights), True
    _, reduction, divergence = settings.rollout_rs.split("_")
    tokens = [{"k1": x, "k2": x * x / 2, "k3": math.exp(x) - 1 - x}[divergence] for x in d.tolist()]
    value = {"sum": sum, "mean": statistics.fmean, "max": max}[reduction](tokens)
    assert settings.rollout_rs_threshold is not None
    if divergence == "k1":
        least = settings.rollout_rs_threshold_lower or 1 / settings.rollout_rs_threshold
        return torch.tensor(weights), least <= math.exp(value) <= settings.rollout_rs_threshold
    return torch.tensor(weights), value <= settings.rollout_rs_threshold


def plain_step(plain: PlainUpdate) -> dict[str, float]:
    """The whole step: advantages, then one trajectory after the other; the metrics of it."""
    rl = plain.config.rl_config
    advantages = plain_advantages(plain.config)
    trajectories = [t for group in make_groups() for t in group.trajectories if t.id in advantages]
    num_tokens, count = sum(t.num_sampled for t in trajectories), len(trajectories)
    names = ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
    sums = dict.fromkeys(names, 0.0)
    all_weights, num_kept = [], 0
    plain.adam.zero_grad()
    for trajectory in trajectories:
        (sequence,) = trajectory.sequences
        is_sampled = torch.tensor(sequence.loss_mask[1:], dtype=torch.bool)
        token_ids = torch.tensor(sequence.token_ids)
        logp, entropy = (x[is_sampled] for x in plain.logprobs_and_entropy(token_ids))
        targets = token_ids[1:][is_sampled]
        rollout, a = rollout_logprobs(targets), torch.tensor(advantages[trajectory.id])
        bypasses = rl.rollout_correction.bypass_mode
        old = rollout if bypasses else old_logprobs(targets)
        weights, is_kept = plain_correction(rl.rollout_correction, (logp.detach() if bypasses else old) - rollout)
        part = PLAIN_LOSSES[rl.policy_loss](logp, old, a, rl.clip_ratio_low, rl.clip_ratio_high, rl.clip_ratio_c)
        policy, kl = weights * part.loss, plain_kl(logp, ref_logprobs(targets), rl.kl_penalty)
        share = {
            LossAggregation.TOKEN_MEAN: 1 / num_tokens,
            LossAggregation.SEQ_MEAN_TOKEN_MEAN: 1 / (count * len(logp)),
            LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM: 1 / (count * SCALE),
        }[rl.loss_agg_mode]
        if is_kept:
            ((policy + rl.init_kl_coef * kl - rl.entropy_coeff * entropy) * share).sum().backward()
        for name, term in zip(names, (policy * is_kept, kl, entropy, old - logp, part.clipped), strict=True):
            sums[name] += float(term.detach().sum()) * share
        all_weights += weights.tolist()
        num_kept += is_kept
    norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), plain.config.actor_config.clip_grad)
    plain.adam.step()
    if rl.rollout_correction.rollout_is is not None:
        sums["rollout_corr/rollout_is_mean"] = statistics.fmean(all_weights)
    if rl.rollout_correction.rollout_rs is not None:
        sums["rollout_corr/rollout_rs_seq_masked_fraction"] = 1 - num_kept / count
    return sums | {"actor/grad_norm": float(norm)}
