"""The actor's update against transformers' forward and backward, on the same samples, in one process by turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.bench.figures import Figure, median_ratio, write_json
from rl.config.load import load_config
from rl.config.schema import Config
from rl.data.packing import pack_samples, packing_layout
from rl.training.actor import Actor
from rl.training.step import accumulate_gradients
from rl.types import MicroBatch, Sample

_NUM_SAMPLES, _LENGTH, _ROUNDS = 8, 256, 5
_GOAL = 0.8


def measure(config: Config) -> list[Figure]:
    """Tokens per second of forward and backward; the optimizer's step is left out on both sides.

    The samples are of equal length, so that transformers needs no padding; every token but the first carries loss.
    """
    torch.manual_seed(0)
    rows = torch.randint(100, 40_000, (_NUM_SAMPLES, _LENGTH))
    layout = replace(packing_layout(config, num_data_parallel=1), mini_batch_prompts=_NUM_SAMPLES)
    micro_batches = (
        pack_samples([_sample(i, row) for i, row in enumerate(rows)], layout).mini_batches[0].micro_batches[0]
    )
    with Actor(config) as actor:
        model = AutoModelForCausalLM.from_pretrained(config.actor_config.load, dtype=torch.bfloat16).train()
        per_pass = len(rows) // len(micro_batches)

        def ours(_: int) -> float:
            return _tokens_per_second(rows, lambda: _actor_pass(actor, micro_batches))

        def theirs(_: int) -> float:
            return _tokens_per_second(rows, lambda: _transformers_pass(model, rows.split(per_pass)))

        ours(0), theirs(0)
        ratio, a, b = median_ratio(ours, theirs, _ROUNDS)
    detail = f"{a:.0f} against {b:.0f} tokens/s, {_NUM_SAMPLES} x {_LENGTH} tokens"
    return [Figure("update / transformers", ratio, "", _GOAL, detail=detail)]


def _sample(index: int, row: Tensor) -> Sample:
    mask = torch.ones(len(row))
    mask[0] = 0
    return Sample(str(index), str(index), row, mask, mask.clone(), torch.zeros(len(row)))


def _actor_pass(actor: Actor, micro_batches: list[MicroBatch]) -> None:
    """What `Actor.update` does before the optimizer's step."""
    assert actor.optimizer is not None
    actor.optimizer.zero_grad()
    accumulate_gradients(actor.chunks, micro_batches, actor.objective, actor.parallel)


def _transformers_pass(model: torch.nn.Module, batches: tuple[Tensor, ...]) -> None:
    """What a plain trainer does: logits of every token, log-softmax in float32, the mean over all tokens."""
    model.zero_grad(set_to_none=False)
    total = sum(batch.numel() - len(batch) for batch in batches)
    for batch in batches:
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, batch[:, 1:, None]).squeeze(-1)
        (-logprobs.sum() / total).backward()


def _tokens_per_second(rows: Tensor, run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return rows.numel() / (time.perf_counter() - start)


if __name__ == "__main__":
    name, output, *overrides = sys.argv[1:]
    write_json(measure(load_config(name, overrides)), Path(output))
