"""Counts of what became of the samples that a client sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rl.serving.arbor.ledger import MatchKind

_ALWAYS = ("groups", "samples", *map(str, MatchKind), "duplicate_samples", "duplicate_groups", "dropped_groups")


class Figures:
    """Counts of one training, from its beginning and since the last batch.

    `groups` and `samples` are what came, `exact`, `text` and `fields` how the samples that were trained on were
    recognized, `left_out/...` why others were not. `duplicate_samples` and `duplicate_groups` came a second time, as a
    client fills groups and batch ids; they are no samples. `dropped_groups` had fewer than two samples to train on.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._batch: Counter[str] = Counter()

    def count(self, name: str, number: int = 1) -> None:
        """Count something."""
        self.totals[name] += number
        self._batch[name] += number

    def begin_batch(self) -> None:
        """What is counted from here on belongs to another batch."""
        self._batch.clear()

    @property
    def trained_as_sampled(self) -> float:
        """Share of all samples that are trained on, each with the tokens that were sampled; 1 without any."""
        return _share(self.totals)

    def metrics(self) -> dict[str, float]:
        """Counts of all batches under their names in the metrics."""
        return _metrics(self.totals, self.totals)

    def batch_metrics(self) -> dict[str, float]:
        """Counts of this batch, with zeros for what occurred in others."""
        return _metrics(self._batch, self.totals)

    def __str__(self) -> str:
        """All counts, for the log."""
        return ", ".join(f"{name} {number}" for name, number in sorted(self.totals.items()) if number)


def _share(counts: Counter[str]) -> float:
    return sum(counts[str(kind)] for kind in MatchKind) / counts["samples"] if counts["samples"] else 1.0


def _metrics(counts: Counter[str], names: Iterable[str]) -> dict[str, float]:
    named = {f"serve/arbor/{name}": float(counts[name]) for name in sorted({*_ALWAYS, *names})}
    return {**named, "serve/trained_as_sampled": _share(counts)}
