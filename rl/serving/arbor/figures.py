"""Counts of what became of the samples that a client sent."""

from __future__ import annotations

from collections import Counter

from rl.serving.arbor.ledger import MatchKind


class Figures:
    """Counts of one training, from its beginning.

    `groups` and `samples` are what came, `exact`, `text` and `fields` how the samples that were trained on were
    recognized, `left_out/...` why others were not. `duplicate_samples` and `duplicate_groups` came a second time, as a
    client fills groups and batch ids; they are no samples. `dropped_groups` had fewer than two samples to train on.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str, number: int = 1) -> None:
        """Count something."""
        self.counts[name] += number

    @property
    def trained_as_sampled(self) -> float:
        """Share of the samples that are trained on, all of them with the tokens that were sampled; 1 without any."""
        samples = self.counts["samples"]
        return sum(self.counts[str(kind)] for kind in MatchKind) / samples if samples else 1.0

    def metrics(self) -> dict[str, float]:
        """All counts under their names in the metrics."""
        names = ["groups", "samples", *map(str, MatchKind), "duplicate_samples", "duplicate_groups", "dropped_groups"]
        counts = {f"serve/arbor/{name}": float(self.counts[name]) for name in [*names, *sorted(self.counts)]}
        return {**counts, "serve/trained_as_sampled": self.trained_as_sampled}

    def __str__(self) -> str:
        """All counts, for the log."""
        return ", ".join(f"{name} {number}" for name, number in sorted(self.counts.items()) if number)
