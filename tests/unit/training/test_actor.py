from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.algorithms.losses import clipped_policy_loss
from rl.algorithms.token_loss import TokenLoss
from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MicroBatch, Sample
from rl.config.schema import LrDecayStyle
from rl.errors import CheckpointError
from rl.training.actor import Actor
from tests.tiny import make_tiny_model
from tests.update_case import PlainUpdate, update_config, update_samples, with_logprobs


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param, num_layers=2)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", num_layers=2)


def micro_batches(samples: list[Sample], max_tokens: int = 48, share_prefix: bool = True) -> list[MicroBatch]:
    config = update_config(Path())
    config.rl_config.share_prompt_prefix = share_prefix
    config.rl_config.max_packing_token_size = max_tokens
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    return with_logprobs(mini_batch).micro_batches[0]


def weights_of(actor: Actor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in actor.export_hf_weights()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("is_distributed", [True, False])
def test_update_equals_plain_autograd_and_adamw(model_folder: Path, is_distributed: bool):
    config = update_config(model_folder)
    config.megatron_training.use_distributed_optimizer = is_distributed
    samples, plain = update_samples(), PlainUpdate(config)
    with Actor(config) as actor:
        for _ in range(3):
            expected, metrics = plain.step(samples), actor.update(micro_batches(samples))
            for name, value in expected.items():
                assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert metrics["actor/pg_clipfrac"] > 0.05
        assert_close(weights_of(actor), plain.weights(), atol=1e-5)


def test_update_does_not_depend_on_the_packing(qwen2: Path):
    samples = update_samples()
    results = []
    for max_tokens, share_prefix in ((1, False), (48, False), (1000, False), (48, True), (1000, True)):
        with Actor(update_config(qwen2)) as actor:
            metrics = [actor.update(micro_batches(samples, max_tokens, share_prefix)) for _ in range(3)]
            results.append((metrics, weights_of(actor)))
    for metrics, weights in results[1:]:
        for one, other in zip(metrics, results[0][0], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
        assert_close(weights, results[0][1], atol=1e-5)


def test_logprobs_are_those_of_transformers_at_the_sampling_temperature(model_folder: Path):
    config = update_config(model_folder)
    plain = PlainUpdate(config)
    with Actor(config) as actor:
        micros = micro_batches(update_samples(), share_prefix=False)
        for micro, logprobs in zip(micros, actor.compute_logprobs(micros), strict=True):
            bounds = micro.cu_seqlens.tolist()
            for start, end in pairwise(bounds):
                expected, _ = plain.logprobs_and_entropy(micro.token_ids[start:end])
                mask = micro.loss_mask[start : end - 1]
                torch.testing.assert_close(logprobs[start : end - 1], expected.detach() * mask, atol=1e-4, rtol=0)


def test_first_mini_batch_has_ratio_exactly_one_but_not_the_second(qwen2: Path):
    config = update_config(qwen2)
    config.rl_config.mini_batch_size = 2
    config.rl_config.init_kl_coef = 0.0
    first, second = pack_samples(update_samples(), packing_layout(config, num_data_parallel=1)).mini_batches
    with Actor(config) as actor:
        everything = [*first.micro_batches[0], *second.micro_batches[0]]
        for micro, logprobs in zip(everything, actor.compute_logprobs(everything), strict=True):
            micro.old_logprobs = logprobs
        metrics = actor.update(first.micro_batches[0])
        assert metrics["actor/ppo_kl"] == 0.0 and metrics["actor/pg_clipfrac"] == 0.0
        assert actor.update(second.micro_batches[0])["actor/ppo_kl"] != 0.0


class RecordedRatios:
    """The clipped loss; records current - old of every loss token."""

    def __init__(self) -> None:
        self.log_ratios: list[Tensor] = []

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **settings: Any) -> TokenLoss:
        self.log_ratios.append((logprobs - old_logprobs).detach()[settings["loss_mask"] > 0])
        return clipped_policy_loss(logprobs, old_logprobs, advantages, **settings)

    def largest(self) -> float:
        """The largest |log-ratio| since the last call."""
        found = torch.cat(self.log_ratios).abs().max()
        self.log_ratios.clear()
        return float(found)


def test_old_logprobs_computed_once_give_ratio_one_only_in_the_first_mini_batch(qwen2: Path):
    config = update_config(qwen2)
    config.rl_config.mini_batch_size, config.rl_config.epochs = 2, 2
    batch = pack_samples(update_samples(), packing_layout(config, num_data_parallel=1))
    assert [mini.num_trajectories for mini in batch.mini_batches] == [5, 2, 5, 2]  # prompts 0 and 1, then prompt 2
    ratios = RecordedRatios()
    with Actor(config) as actor:
        actor.objective = replace(actor.objective, loss=ratios)
        first_epoch = [micro for mini in batch.mini_batches[:2] for micro in mini.micro_batches[0]]
        for micro, logprobs in zip(first_epoch, actor.compute_logprobs(first_epoch), strict=True):
            micro.old_logprobs = logprobs
        metrics = [actor.update(batch.mini_batches[0].micro_batches[0])]
        assert ratios.largest() == 0.0
        for mini in batch.mini_batches[1:]:
            metrics.append(actor.update(mini.micro_batches[0]))
            assert ratios.largest() > 1e-3
    assert metrics[0]["actor/pg_clipfrac"] == metrics[0]["actor/ppo_kl"] == 0.0
    mismatch = [{k: v for k, v in m.items() if k.startswith("rollout_corr/")} for m in metrics]
    assert mismatch[0] == mismatch[2] and mismatch[1] == mismatch[3]  # old against rollout: no update changes it


def test_old_logprobs_of_another_packing_give_ratio_one_to_rounding(qwen2: Path):
    config = update_config(qwen2)
    ratios = RecordedRatios()
    with Actor(config) as actor:
        actor.objective = replace(actor.objective, loss=ratios)
        alone = micro_batches(update_samples(), max_tokens=1, share_prefix=False)
        by_tokens = {}
        for micro, logprobs in zip(alone, actor.compute_logprobs(alone), strict=True):
            by_tokens[tuple(micro.target_ids[micro.loss_mask > 0].tolist())] = logprobs[micro.loss_mask > 0]
        packed = micro_batches(update_samples(), max_tokens=1000, share_prefix=False)
        for micro in packed:
            micro.old_logprobs = torch.zeros_like(micro.loss_mask)
            for start, end in pairwise(micro.cu_seqlens.tolist()):
                chosen = micro.loss_mask[start:end] > 0
                old = by_tokens[tuple(micro.target_ids[start:end][chosen].tolist())]
                micro.old_logprobs[start:end][chosen] = old
        actor.update(packed)
    assert ratios.largest() < 1e-5


def test_missing_old_logprobs_default_to_the_current_ones(qwen2: Path):
    results = []
    for is_given in (True, False):
        with Actor(update_config(qwen2)) as actor:
            micros = micro_batches(update_samples())
            for micro, logprobs in zip(micros, actor.compute_logprobs(micros), strict=True):
                micro.old_logprobs = logprobs if is_given else None
            results.append((actor.update(micros), weights_of(actor)))
    assert results[0][0] == results[1][0]
    assert_close(results[0][1], results[1][1], atol=0.0)


def test_rollout_probs_difference_worked_example(qwen2: Path):
    with Actor(update_config(qwen2)) as actor:
        micros = micro_batches(update_samples())
        for micro in micros:
            micro.old_logprobs = torch.full_like(micro.loss_mask, 0.5).log() * micro.loss_mask
            micro.rollout_logprobs = torch.full_like(micro.loss_mask, 0.25).log() * micro.loss_mask
        micros[0].rollout_logprobs[micros[0].loss_mask.argmax()] = 0.0  # one token of probability 1
        metrics = actor.update(micros)
    num_tokens = sum(float(m.loss_mask.sum()) for m in micros)
    assert metrics["training/rollout_probs_diff_max"] == pytest.approx(0.5)
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx((0.25 * (num_tokens - 1) + 0.5) / num_tokens)


def test_sft_minimizes_the_likelihood_at_temperature_one(qwen2: Path):
    config = update_config(qwen2)
    samples = update_samples()
    model = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32).requires_grad_(False)
    nll, count = 0.0, 0.0
    for sample in samples:
        logp = model(sample.token_ids[None]).logits[0, :-1].log_softmax(-1).gather(1, sample.token_ids[1:, None])[:, 0]
        nll -= float((logp * sample.loss_mask[1:]).sum())
        count += float(sample.loss_mask[1:].sum())
    with Actor(config, loss="sft") as actor:
        micros = micro_batches(samples)
        for micro in micros:
            micro.old_logprobs = micro.ref_logprobs = None
        metrics = [actor.update(micros) for _ in range(4)]
    assert not [name for name in metrics[0] if name.startswith("training/rollout_probs_diff")]
    losses = [m["actor/loss"] for m in metrics]
    assert losses[0] == pytest.approx(nll / count, rel=1e-4)
    assert losses[3] < losses[0] - 0.1


def test_reference_has_the_logprobs_of_the_start(qwen2: Path):
    micros = micro_batches(update_samples())
    with Actor(update_config(qwen2)) as actor:
        expected = actor.compute_logprobs(micros)
    with Actor(update_config(qwen2), loss="reference") as reference:
        for one, other in zip(reference.compute_logprobs(micros), expected, strict=True):
            assert torch.equal(one, other)
        with pytest.raises(AssertionError, match="a reference has no optimizer"):
            reference.update(micros)


@pytest.mark.parametrize("field", ["rollout_logprobs", "old_logprobs"])
def test_log_prob_that_is_not_finite_skips_the_step_and_names_its_samples(qwen2: Path, field: str):
    """Even though clipping would make the gradient finite."""
    with Actor(update_config(qwen2)) as actor:
        before = weights_of(actor)
        broken = micro_batches(update_samples(), max_tokens=48)
        assert len(broken) > 1
        position = int((broken[1].sample_ids >= 0).nonzero()[-1])
        getattr(broken[1], field)[position] = -torch.inf
        metrics = actor.update(broken)
        assert metrics["actor/skipped_steps"] == metrics["actor/broken_tokens"] == 1.0
        assert actor.broken_samples == [int(broken[1].sample_ids[position])]
        assert_close(weights_of(actor), before, atol=0.0)
        assert actor.update(micro_batches(update_samples()))["actor/skipped_steps"] == 0.0
        assert actor.broken_samples == []


def test_gradient_that_is_not_finite_changes_nothing(qwen2: Path):
    with Actor(update_config(qwen2)) as actor:
        actor.update(micro_batches(update_samples()))
        before = weights_of(actor)
        broken = micro_batches(update_samples())
        broken[0].advantages[broken[0].loss_mask.argmax()] = float("inf")
        metrics = actor.update(broken)
        assert metrics["actor/skipped_steps"] == 1.0
        assert_close(weights_of(actor), before, atol=0.0)
        assert actor.update(micro_batches(update_samples()))["actor/skipped_steps"] == 0.0


@pytest.fixture(params=[(False, True), (True, True), (True, False)], ids=["float32", "bfloat16", "not-distributed"])
def checkpointed(request: pytest.FixtureRequest, qwen2: Path, tmp_path: Path) -> Iterator[tuple[Actor, Path]]:
    config = update_config(qwen2, lr_decay_style=LrDecayStyle.COSINE, lr_warmup_fraction=0.2)
    config.megatron_training.bf16, config.megatron_training.use_distributed_optimizer = request.param
    with Actor(config) as actor:
        for _ in range(3):
            actor.update(micro_batches(update_samples()))
        actor.save_checkpoint(tmp_path / "checkpoint")
        yield actor, tmp_path / "checkpoint"


def test_resumed_run_repeats_the_uninterrupted_one(checkpointed: tuple[Actor, Path]):
    actor, folder = checkpointed
    micros = micro_batches(update_samples())
    expected = [actor.update(micros) for _ in range(2)]
    weights = weights_of(actor)
    config = actor.config
    actor.shutdown()
    with Actor(config) as resumed:
        resumed.load_checkpoint(folder)
        assert [resumed.update(micros) for _ in range(2)] == expected
        assert_close(weights_of(resumed), weights, atol=0.0)


def test_checkpoint_is_a_model_folder_for_transformers(checkpointed: tuple[Actor, Path]):
    actor, folder = checkpointed
    weights = weights_of(actor)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == next(iter(weights.values())).dtype
    assert_close({name: p.detach() for name, p in model.named_parameters()}, weights, atol=0.0)
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.parent.glob("*.writing"))


def test_incomplete_checkpoints_are_rejected(checkpointed: tuple[Actor, Path]):
    actor, folder = checkpointed
    with pytest.raises(CheckpointError, match="not empty"):
        actor.save_checkpoint(folder)
    next((folder / "optimizer" / "exp_avg").glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        actor.load_checkpoint(folder)
    (folder / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match=r"trainer_state.json is missing"):
        actor.load_checkpoint(folder)


KEYS = ("offload_train_param", "offload_train_optimizer", "offload_train_grad")


@pytest.mark.parametrize("keys", [KEYS, KEYS[:1], KEYS[1:2], KEYS[2:]], ids=["all", "param", "optimizer", "grad"])
def test_updates_after_offloading_are_the_same_to_the_bit(checkpointed: tuple[Actor, Path], keys: tuple[str, ...]):
    actor, folder = checkpointed
    micros = micro_batches(update_samples())
    expected = [actor.update(micros) for _ in range(2)]
    weights = weights_of(actor)
    for key in KEYS:
        setattr(actor.config.generate_config, key, key in keys)
    actor.offload()
    actor.load_checkpoint(folder)
    for metrics in expected:
        actor.offload()
        emptied = all(p.untyped_storage().nbytes() == 0 for chunk in actor.chunks for p in chunk.parameters())
        assert emptied == (KEYS[0] in keys)
        actor.offload()  # a second call does nothing
        assert actor.update(micros) == metrics
    assert_close(weights_of(actor), weights, atol=0.0)


def test_offloaded_actor_has_exactly_its_parameters_and_state_on_the_host(checkpointed: tuple[Actor, Path]):
    actor, _ = checkpointed
    assert actor.optimizer is not None
    actor.offload()
    is_bfloat16 = actor.config.megatron_training.bf16
    num_parameters = sum(p.numel() for chunk in actor.chunks for p in chunk.parameters())
    expected = num_parameters * (14 if is_bfloat16 else 12)  # float32 trains the parameters themselves
    assert expected <= actor._stash.host_bytes <= expected * 1.01  # buffers end on even addresses
    assert all(buffer.grad_data.untyped_storage().nbytes() == 0 for chunk in actor.chunks for buffer in chunk.buffers)


def test_offloaded_actor_saves_its_checkpoint(checkpointed: tuple[Actor, Path]):
    actor, folder = checkpointed
    actor.offload()
    actor.save_checkpoint(folder.parent / "again")
    for name in ("model.safetensors", "optimizer/exp_avg_sq", "optimizer/main_param"):
        first, again = folder / name, folder.parent / "again" / name
        files = sorted(first.glob("*.safetensors")) if first.is_dir() else [first]
        for file in files:
            other = again / file.name if again.is_dir() else again
            assert file.read_bytes() == other.read_bytes(), name


def test_actor_that_never_trained_can_be_offloaded(qwen2: Path):
    micros = micro_batches(update_samples())
    with Actor(update_config(qwen2)) as actor:
        expected = actor.compute_logprobs(micros)
        actor.offload()
        assert all(torch.equal(a, b) for a, b in zip(actor.compute_logprobs(micros), expected, strict=True))
        actor.update(micros)  # creates Adam's moments, so the next offload needs more memory
        actor.offload()
        assert actor.update(micros)["actor/skipped_steps"] == 0.0


def test_learning_rate_warms_up_and_decays(qwen2: Path):
    config = update_config(qwen2, lr=1.0e-3, min_lr=1.0e-4, lr_decay_style=LrDecayStyle.LINEAR, lr_warmup_fraction=0.2)
    config.megatron_training.train_iters = 100  # the run ends earlier, as with total_epochs
    micros = micro_batches(update_samples())
    with Actor(config, num_steps=10) as actor:
        rates = [actor.update(micros)["actor/lr"] for _ in range(11)]
    # Two steps of warm-up: 1/3 and 2/3 of the peak; then decay to 1e-4 in the last of the 10 steps and after.
    expected = [1e-3 / 3, 2e-3 / 3, 1e-3] + [1e-3 - 9e-4 * k / 7 for k in range(1, 8)] + [1e-4]
    assert rates == pytest.approx(expected)
