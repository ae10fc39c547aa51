from __future__ import annotations

import torch

from rl.batches import Sample
from tools.bench.update import equal_samples, grouped_samples, pad_batches, ragged_samples


def sample(length: int) -> Sample:
    mask = torch.ones(length)
    return Sample("a/0", "a", torch.arange(1, length + 1), mask, mask, mask)


def test_pad_batches_fills_in_order_up_to_the_padded_budget() -> None:
    # 4 and 3: padded 8; with 2 it would be 12. Then 2 and 1; with 5 it would be 15. The 20 stands alone.
    batches = pad_batches([sample(n) for n in (4, 3, 2, 1, 5, 20)], max_tokens=10)
    assert [batch.attention_mask.sum(1).tolist() for batch in batches] == [[4, 3], [2, 1], [5], [20]]
    assert batches[0].token_ids.tolist() == [[1, 2, 3, 4], [1, 2, 3, 0]]
    assert batches[1].loss_mask.tolist() == [[1, 1], [1, 0]]


def test_samples_of_the_benchmark_are_what_the_goals_speak_of() -> None:
    assert {len(s.token_ids) for s in equal_samples()} == {256}
    lengths = [len(s.token_ids) for s in ragged_samples()]
    assert (min(lengths), max(lengths), lengths == sorted(lengths)) == (64, 512, False)
    groups = grouped_samples()
    answers = [int(s.loss_mask.sum()) for s in groups]
    assert sum(answers) / len(answers) == 96 and {
        len(s.token_ids) - a for s, a in zip(groups, answers, strict=True)
    } == {288}
