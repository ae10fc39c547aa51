"""One update problem for the tests of the actor: a configuration, samples, and the same update in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.batches import MicroBatch, MiniBatch, Sample
from rl.config.schema import Config, Device
from rl.training.actor import Actor
from rl.training.hf_weights import WeightMapping, map_to_hf, name_parameters

VOCAB_SIZE = 500
"""Token ids are below this; models may have a larger vocabulary."""


def update_config(model_folder: Path, **actor: object) -> Config:
    """Float32 on the CPU, a temperature that is not 1, both extra loss terms, Adam's eps large enough to compare."""
    config = Config()
    config.actor_config.load = str(model_folder)
    config.actor_config.lr = 1e-2
    config.actor_config.adam_eps = 1e-4
    config.actor_config.weight_decay = 0.1
    config.actor_config.clip_grad = 0.5
    for key, value in actor.items():
        setattr(config.actor_config, key, value)
    config.megatron_training.bf16 = False
    config.megatron_training.device = Device.CPU
    config.megatron_training.global_batch_size = 3
    config.megatron_training.train_iters = 10
    config.rl_config.clip_higher_enable = True
    config.rl_config.entropy_coeff = 0.01
    config.rl_config.init_kl_coef = 0.1
    config.rl_config.max_packing_token_size = 48
    config.rl_config.rollout_correction.rollout_is = None  # the rollout's log-probs are far from any policy's
    config.generate_config.sampling_config.temperature = 0.7
    return config


def update_samples() -> list[Sample]:
    """Seven samples of three groups with a prompt of 4 tokens each, 6 to 33 tokens, a tool's result in the middle."""
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, VOCAB_SIZE, (3, 4), generator=generator)
    samples = []
    for number, length in enumerate((33, 6, 17, 24, 9, 12, 30)):
        mask = torch.ones(length)
        mask[:4] = 0
        mask[length // 2 : length // 2 + 2] = 0
        token_ids = torch.randint(3, VOCAB_SIZE, (length,), generator=generator)
        token_ids[:4] = prompts[number % 3]
        advantage = 1.5 if number % 2 else -1.0
        samples.append(
            Sample(
                trajectory_id=f"g{number % 3}/{number}",
                group_id=f"g{number % 3}",
                token_ids=token_ids,
                loss_mask=mask,
                advantages=mask * advantage,
                rollout_logprobs=-mask * 6 * torch.rand(length, generator=generator),
            )
        )
    return samples


def set_logprobs(micro: MicroBatch) -> None:
    """Old and reference log-probs that depend on the token alone, so that they are the same under any packing."""
    spread = (micro.target_ids % 7).float() / 7 - 0.4
    micro.old_logprobs = (-6.2 + spread) * micro.loss_mask
    micro.ref_logprobs = (-6.0 - spread) * micro.loss_mask


class PlainUpdate:
    """A plain reference update: transformers, autograd, torch's AdamW, one sample at a time, no packing."""

    def __init__(self, config: Config) -> None:
        actor = config.actor_config
        self.config = config
        self.model = AutoModelForCausalLM.from_pretrained(actor.load, dtype=torch.float32)
        parameters = list(self.model.parameters())
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": actor.weight_decay},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=actor.lr,
            betas=(actor.adam_beta1, actor.adam_beta2),
            eps=actor.adam_eps,
        )

    def logprobs_and_entropy(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the next tokens, [L - 1] each, at the sampling temperature."""
        logits = self.model(token_ids[None]).logits[0, :-1] / self.config.generate_config.sampling_config.temperature
        logp = logits.log_softmax(-1)
        return logp.gather(1, token_ids[1:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    def step(self, samples: list[Sample]) -> dict[str, float]:
        """One clipped policy-gradient step with KL and entropy terms, token mean over all samples."""
        rl = self.config.rl_config
        total = sum(float(s.loss_mask[1:].sum()) for s in samples)
        sums = dict.fromkeys(
            ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac"), 0.0
        )
        self.adam.zero_grad()
        for sample in samples:
            mask, targets = sample.loss_mask[1:], sample.token_ids[1:]
            spread = (targets % 7).float() / 7 - 0.4
            old, ref = -6.2 + spread, -6.0 - spread
            logp, entropy = self.logprobs_and_entropy(sample.token_ids)
            ratio = (logp - old).exp()
            advantages = sample.advantages[1:]
            clipped = ratio.clamp(1 - rl.clip_ratio_low, 1 + rl.clip_ratio_high)
            policy = -torch.minimum(ratio * advantages, clipped * advantages)
            kl = (ref - logp).exp() - 1 - (ref - logp)
            ((policy + rl.init_kl_coef * kl - rl.entropy_coeff * entropy) * mask / total).sum().backward()
            terms = (policy, kl, entropy, old - logp, (ratio * advantages > clipped * advantages).float())
            for name, term in zip(sums, terms, strict=True):
                sums[name] += float((term.detach() * mask).sum()) / total
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.actor_config.clip_grad)
        self.adam.step()
        return sums | {"actor/grad_norm": float(norm)}

    def weights(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {name: p.detach() for name, p in self.model.named_parameters()}


def with_logprobs(mini_batch: MiniBatch) -> MiniBatch:
    """The mini-batch, with `set_logprobs` applied to all of it."""
    for rank in mini_batch.micro_batches:
        for micro in rank:
            set_logprobs(micro)
    return mini_batch


@dataclass
class UpdateTrace:
    """Results of three updates on one rank."""

    metrics: list[dict[str, float]]
    """Metrics of each update."""
    gradients: dict[str, Tensor]
    """Gradients of the first update, whole and unclipped, under Hugging Face names."""
    weights: dict[str, Tensor]
    """Parameters after the third update."""


def trace_updates(actor: Actor, micros: list[MicroBatch]) -> UpdateTrace:
    """Train three steps on the same micro-batches."""
    metrics = [actor.update(micros)]
    gradients = _first_gradients(actor, metrics[0]["actor/grad_norm"])
    metrics += [actor.update(micros) for _ in range(2)]
    weights = {name: tensor.clone() for name, tensor in actor.export_hf_weights()}
    return UpdateTrace(metrics, gradients, weights)


def _first_gradients(actor: Actor, norm: float) -> dict[str, Tensor]:
    """Computed from Adam's first moment, which after one step is (1 - beta1) times the clipped gradient."""
    config = actor.config.actor_config
    scale = max(1.0, norm / config.clip_grad) / (1 - config.adam_beta1)
    assert actor.optimizer is not None
    moments = [
        (name, actor.optimizer.gather_state(parameter, "exp_avg") * scale)
        for name, parameter in name_parameters(actor.chunks).items()
    ]
    hf_config = actor.chunks[0].module.hf_config
    return {name: t.clone() for name, t in map_to_hf(moments, WeightMapping.of(hf_config, actor.parallel))}


def assert_same_updates(actual: UpdateTrace, expected: UpdateTrace, *, rel: float = 1e-5) -> None:
    """Gradients, gradient norms and parameters agree, each tensor to `rel` of its norm."""
    for one, other in zip(actual.metrics, expected.metrics, strict=True):
        assert abs(one["actor/grad_norm"] / other["actor/grad_norm"] - 1) < rel, (one, other)
    for field in ("gradients", "weights"):
        errors = relative_errors(getattr(actual, field), getattr(expected, field))
        worst = max(errors, key=lambda name: errors[name])
        assert errors[worst] < rel, (field, worst, errors[worst])


def relative_errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """|a - b| / |b| of each tensor."""
    assert actual.keys() == expected.keys()
    return {name: float((actual[name] - b).norm() / b.norm()) for name, b in expected.items()}
