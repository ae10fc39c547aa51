"""Random rollouts that branch, as training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.batches import Sample


@dataclass
class _Row:
    ids: list[int]
    mask: list[int]


def tree_samples(seed: int, *, num_groups: int = 2, vocab_size: int = 500) -> list[Sample]:
    """Rows of groups of two trajectories, which begin with a prompt of 3 to 24 tokens.

    A trajectory has up to six sequences. Each grows by sampled turns and by context; but for the first, it begins with
    a part of another one, which is context there, up to the end of a turn or to any token. The rows of a trajectory are
    shuffled, so that copies may stand before what they are copies of. With few words sequences agree by chance.
    """
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for group in range(num_groups):
        prompt = _tokens(rng, int(rng.integers(3, 25)), vocab_size)
        for member in range(2):
            rows = [_grown(rng, _Row(prompt, [0] * len(prompt)), vocab_size)]
            for _ in range(int(rng.integers(0, 6))):
                source = rows[int(rng.integers(len(rows)))]
                ends = [i for i in range(len(prompt), len(source.ids)) if source.mask[i - 1] > source.mask[i]]
                cut = (
                    int(rng.choice(ends)) if ends and rng.random() < 0.7 else int(rng.integers(2, len(source.ids) + 1))
                )
                rows.append(_grown(rng, _Row(source.ids[:cut], [0] * cut), vocab_size))
            advantage = float(rng.normal())
            order = rng.permutation(len(rows))
            samples += [_sample(f"g{group}/{member}", rows[i], advantage, rng) for i in order]
    return samples


def _grown(rng: np.random.Generator, row: _Row, vocab_size: int) -> _Row:
    ids, mask = list(row.ids), list(row.mask)
    for _ in range(int(rng.integers(1, 4))):
        for value in (1, 0):
            new = _tokens(rng, int(rng.integers(1, 9)), vocab_size)
            ids, mask = ids + new, mask + [value] * len(new)
    if rng.random() < 0.5:  # it ends with a sampled token
        ids, mask = [*ids, 3], [*mask, 1]
    return _Row(ids, mask)


def _tokens(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    found: list[int] = rng.integers(3, vocab_size, count).tolist()
    return found


def _sample(name: str, row: _Row, advantage: float, rng: np.random.Generator) -> Sample:
    mask = np.array(row.mask, np.uint8)
    return Sample(
        trajectory_id=name,
        group_id=name.split("/")[0],
        token_ids=np.array(row.ids, np.int32),
        loss_mask=mask,
        advantages=(mask * advantage).astype(np.float32),
        rollout_logprobs=(-6.0 * mask * rng.random(len(mask))).astype(np.float32),
    )
