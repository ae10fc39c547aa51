"""The actor's update against transformers' forward and backward, on the same samples, alternating in one process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MicroBatch, Sample
from rl.config.load import load_config
from rl.config.schema import Config
from rl.training.actor import Actor
from rl.training.step import accumulate_gradients
from tools.bench.figures import Figure, median_ratio, write_json

_ROUNDS = 3
_CHILD_TIMEOUT_S = 300.0


@dataclass(slots=True, frozen=True)
class PaddedBatch:
    """The input of a plain transformers trainer. B rows, L tokens of the longest."""

    token_ids: Tensor
    """[B, L] int64, padded on the right."""
    attention_mask: Tensor
    """[B, L], 1 on tokens."""
    loss_mask: Tensor
    """[B, L] float32."""


def equal_samples() -> list[Sample]:
    """8 samples of 256 tokens, each a group of its own; every token but the first carries loss."""
    return [_sample(f"{i}/0", _tokens(256, seed=i), prompt_length=1) for i in range(8)]


def ragged_samples() -> list[Sample]:
    """16 samples of 64 to 512 tokens, evenly spread on a logarithmic scale, shuffled; loss as in `equal_samples`."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    lengths = [round(64 * 8 ** (i / 15)) for i in order]
    return [_sample(f"{i}/0", _tokens(length, seed=i), prompt_length=1) for i, length in enumerate(lengths)]


def grouped_samples() -> list[Sample]:
    """2 groups of eight: a prompt of 288 tokens, answers of 96 on average (72 to 120), which carry the loss."""
    samples = []
    for group in range(2):
        prompt = _tokens(288, seed=group)
        for i, length in enumerate((72, 120, 96, 84, 108, 90, 102, 96)):
            answer = _tokens(length, seed=10 * group + i + 100)
            samples.append(_sample(f"{group}/{i}", torch.cat([prompt, answer]), prompt_length=288))
    return samples


def branching_samples() -> list[Sample]:
    """4 rollouts of one prompt of 128 tokens, each with five sequences.

    One has two turns of 160 tokens with 32 of context between them; four go on from it with 24 tokens of context and a
    turn of 96.
    """
    samples = []
    prompt = _tokens(128, seed=0)
    for i in range(4):
        trunk = torch.cat([prompt, _tokens(2 * 160 + 32, seed=i + 1)])
        mask = torch.ones(len(trunk))
        mask[: len(prompt)] = mask[len(prompt) + 160 : len(prompt) + 192] = 0
        samples.append(_masked_sample(f"0/{i}", trunk, mask))
        for branch in range(4):
            ids = torch.cat([trunk, _tokens(24 + 96, seed=100 + 10 * i + branch)])
            samples.append(_sample(f"0/{i}", ids, prompt_length=len(trunk) + 24))
    return samples


def pad_batches(samples: list[Sample], max_tokens: int) -> list[PaddedBatch]:
    """Fill batches in the order of the samples, within the budget of padded tokens.

    Args:
        samples: In any order.
        max_tokens: Tokens of one batch, including padding; a longer sample gets its own.
    """
    batches: list[list[Sample]] = []
    for sample in samples:
        open_batch = batches[-1] if batches else []
        longest = max(len(s.token_ids) for s in (*open_batch, sample))
        if open_batch and (len(open_batch) + 1) * longest <= max_tokens:
            open_batch.append(sample)
        else:
            batches.append([sample])
    return [_pad(batch) for batch in batches]


def measure(config: Config) -> list[Figure]:
    """Speed and memory of forward and backward passes; the optimizer step is excluded on both sides.

    Each token of a sample counts once, its prompt's included; padding does not count.
    """
    figures = [_memory_figure(config)]
    with Actor(config) as actor:
        model = _transformers_model(config)

        def ours(samples: list[Sample], *, share_prefix: bool = True) -> Callable[[], None]:
            micro_batches = _pack(config, samples, share_prefix=share_prefix)
            return lambda: actor_pass(actor, micro_batches)

        def theirs(samples: list[Sample]) -> Callable[[], None]:
            batches = pad_batches(samples, config.rl_config.max_packing_token_size)
            return lambda: transformers_pass(model, batches)

        equal, ragged, groups, branches = equal_samples(), ragged_samples(), grouped_samples(), branching_samples()
        figures += [
            _ratio("update / transformers, equal lengths", 0.8, equal, ours(equal), theirs(equal)),
            _ratio("update / transformers, ragged lengths", 1.0, ragged, ours(ragged), theirs(ragged)),
            _ratio("update / transformers, groups of eight", 2.0, groups, ours(groups), theirs(groups)),
            _ratio("shared prompts / packing alone", 2.0, groups, ours(groups), ours(groups, share_prefix=False)),
            _ratio("shared turns / packing alone", 2.0, branches, ours(branches), ours(branches, share_prefix=False)),
        ]
    return figures


def actor_pass(actor: Actor, micro_batches: list[MicroBatch]) -> None:
    """What `Actor.update` does before the optimizer's step."""
    assert actor.optimizer is not None
    actor.optimizer.zero_grad()
    accumulate_gradients(actor.chunks, micro_batches, actor.objective, actor.parallel)


def transformers_pass(model: torch.nn.Module, batches: list[PaddedBatch]) -> None:
    """What a plain trainer does: logits of every token, log-softmax in float32, the mean over the loss tokens."""
    model.zero_grad(set_to_none=False)
    total = sum(float(batch.loss_mask.sum()) for batch in batches)
    for batch in batches:
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        logits = model(input_ids=batch.token_ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, batch.token_ids[:, 1:, None]).squeeze(-1)
        (-(logprobs * batch.loss_mask[:, 1:]).sum() / total).backward()


def _memory_figure(config: Config) -> Figure:
    """Peak increase of resident memory during a pass, each side in its own process."""
    growths = []
    for measure_growth in (_actor_growth, _transformers_growth):
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            growths.append(pool.submit(measure_growth, config).result(timeout=_CHILD_TIMEOUT_S))
    num_tokens = sum(len(s.token_ids) for s in equal_samples())
    ours, theirs = (growth / num_tokens / 1024 for growth in growths)
    detail = f"{ours:.0f} against {theirs:.0f} KiB/token, {num_tokens} tokens in one micro-batch"
    return Figure("update / transformers, memory", ours / theirs, "", 1.0, at_least=False, detail=detail)


def _actor_growth(config: Config) -> int:
    config.rl_config.max_packing_token_size = sum(len(s.token_ids) for s in equal_samples())
    with Actor(config) as actor:
        actor_pass(actor, _pack(config, equal_samples()[:1]))
        micro_batches = _pack(config, equal_samples())
        return _peak_growth(lambda: actor_pass(actor, micro_batches))


def _transformers_growth(config: Config) -> int:
    model = _transformers_model(config)
    transformers_pass(model, [_pad(equal_samples()[:1])])
    batch = _pad(equal_samples())
    return _peak_growth(lambda: transformers_pass(model, [batch]))


def _peak_growth(run: Callable[[], None]) -> int:
    """Peak increase of resident memory during `run`, in bytes. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _ratio(
    name: str, goal: float, samples: list[Sample], ours: Callable[[], None], theirs: Callable[[], None]
) -> Figure:
    num_tokens = sum(len(s.token_ids) for s in samples)

    def speed(run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        return num_tokens / (time.perf_counter() - start)

    ours()
    theirs()
    ratio, a, b = median_ratio(lambda _: speed(ours), lambda _: speed(theirs), _ROUNDS)
    detail = f"{a:.0f} against {b:.0f} tokens/s, {len(samples)} samples of {num_tokens} tokens"
    return Figure(name, ratio, "", goal, detail=detail)


def _pack(config: Config, samples: list[Sample], *, share_prefix: bool = True) -> list[MicroBatch]:
    layout = packing_layout(config, num_data_parallel=1)
    layout = replace(layout, mini_batch_prompts=len(samples), share_prefix=share_prefix)
    (mini_batch,) = pack_samples(samples, layout).mini_batches
    return mini_batch.micro_batches[0]


def _pad(samples: list[Sample]) -> PaddedBatch:
    def stack(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    return PaddedBatch(
        token_ids=stack([s.token_ids for s in samples]),
        attention_mask=stack([torch.ones_like(s.token_ids) for s in samples]),
        loss_mask=stack([s.loss_mask for s in samples]),
    )


def _sample(name: str, token_ids: Tensor, *, prompt_length: int) -> Sample:
    mask = torch.ones(len(token_ids))
    mask[:prompt_length] = 0
    return _masked_sample(name, token_ids, mask)


def _masked_sample(name: str, token_ids: Tensor, mask: Tensor) -> Sample:
    return Sample(name, name.split("/")[0], token_ids, mask, advantages=mask, rollout_logprobs=torch.zeros_like(mask))


def _tokens(length: int, *, seed: int) -> Tensor:
    return torch.randint(100, 40_000, (length,), generator=torch.Generator().manual_seed(seed))


def _transformers_model(config: Config) -> torch.nn.Module:
    dtype = torch.bfloat16 if config.megatron_training.bf16 else torch.float32
    return AutoModelForCausalLM.from_pretrained(config.actor_config.load, dtype=dtype).train()


if __name__ == "__main__":
    config_name, output, *overrides = sys.argv[1:]
    write_json(measure(load_config(config_name, overrides)), Path(output))
