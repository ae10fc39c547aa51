"""Dynamic sampling: starts prompts until a batch is full of informative groups, and keeps the surplus.

A batch takes the first informative groups *in order of their prompts*, whatever the order in which they end. A prompt
is started only if those before it cannot be enough. So the prompts used, the batch and the surplus depend on the
groups' results, not on timing.

Source: DAPO, arXiv:2503.14476, section 3.2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rl.algorithms.filters import is_informative
from rl.batches import GroupHeader
from rl.data.prompts import prompt_with_id
from rl.rollout.group_text import header_from_text, prompt_id_of, to_text
from rl.types import Prompt


@dataclass(slots=True)
class Filling:
    """A batch being filled. Prompts are numbered from 0 in the order they are started."""

    num_wanted: int
    """Informative groups to collect."""
    limit: int
    """Maximum prompts to start."""
    metric: str | None
    """What must differ within a group, as `rl_config.filter_groups_metric`; None: every group is taken."""
    carried: list[GroupHeader]
    """Informative groups of earlier batches."""
    num_ahead: int
    """Prompts to start at once."""
    drop_overlong: bool = False
    """Trajectories cut off by the token budget are not trained on, so their differences do not count."""
    keeps_all_rows: bool = False
    """Keep the rows of uninformative groups, because the step's tokens are recorded."""
    num_started: int = 0
    finished: dict[int, GroupHeader] = field(default_factory=dict)
    informative: set[int] = field(default_factory=set)
    """Numbers of those in `finished`."""

    def num_to_start(self) -> int:
        """Prompts to start now; they count as started."""
        num_useless = len(self.finished) - len(self.informative)
        num_hoped_for = len(self.carried) + self.num_started - num_useless
        num = self.num_ahead if self.num_started == 0 else self.num_wanted - num_hoped_for
        num = max(0, min(num, self.limit - self.num_started))
        self.num_started += num
        return num

    def add(self, number: int, group: GroupHeader) -> None:
        """Add a finished group."""
        self.finished[number] = group
        if self.metric is None or is_informative(group, self.metric, drop_overlong=self.drop_overlong):
            self.informative.add(number)
        elif not self.keeps_all_rows:
            group.rows = []  # not trained on, so the object store may free them

    @property
    def num_filled(self) -> int:
        """Informative groups so far, at most those wanted."""
        return min(self.num_wanted, len(self.carried) + len(self.informative))


class GroupBuffer:
    """State carried between batches: surplus groups and the share of informative groups.

    Args:
        metric: What must differ within a group; None: every group is taken.
        drop_overlong: As `rl_config.overlong_filter_enable`.
    """

    def __init__(self, metric: str | None, *, drop_overlong: bool = False) -> None:
        self.metric = metric
        self.drop_overlong = drop_overlong
        self.surplus: deque[GroupHeader] = deque()
        self.useful_share = 1.0
        """Share of informative groups, smoothed over batches."""

    def begin(self, num_wanted: int, limit: int, *, keeps_all_rows: bool = False) -> Filling:
        """Begin a batch with the surplus groups.

        The share of informative groups sets how many prompts start at once, so a batch seldom waits for its last group
        alone. The surplus is at most `num_wanted` groups, so all of it fits into the next batch and none gets older.

        Args:
            num_wanted: Informative groups.
            limit: Prompts that may be started.
            keeps_all_rows: See `Filling`.
        """
        carried = [self.surplus.popleft() for _ in range(min(num_wanted, len(self.surplus)))]
        num_missing = num_wanted - len(carried)
        num_ahead = min(math.ceil(num_missing / self.useful_share), num_missing + num_wanted)
        return Filling(num_wanted, limit, self.metric, carried, num_ahead, self.drop_overlong, keeps_all_rows)

    def end(self, batch: Filling) -> list[GroupHeader]:
        """End a batch whose prompts have all finished; keep its surplus.

        Returns:
            The carried groups, and those of the batch in order of their prompts: the wanted informative ones and the
            uninformative ones, which count in the metrics.
        """
        informative = sorted(batch.informative)
        num_taken = batch.num_wanted - len(batch.carried)
        surplus = set(informative[num_taken:])
        self.surplus.extend(batch.finished[number] for number in sorted(surplus))
        if batch.num_started:
            share = max(len(informative), 1) / batch.num_started
            self.useful_share = (self.useful_share + share) / 2
        return batch.carried + [batch.finished[n] for n in sorted(batch.finished) if n not in surplus]

    def state_dict(self, fetch: Callable[[Any], Any]) -> dict[str, Any]:
        """State for a checkpoint, with whole surplus groups: the weights that sampled them are gone.

        Prompts are saved by id only.

        Args:
            fetch: Resolves a reference of a `GroupHeader`.
        """
        surplus = [to_text({"id": group.prompt.id}, fetch(group.record), fetch(group.rows)) for group in self.surplus]
        return {"useful_share": self.useful_share, "surplus": surplus}

    def load_state_dict(self, state: dict[str, Any], prompts: Iterable[Prompt], keep: Callable[[Any], Any]) -> None:
        """Continue from a `state_dict`.

        Args:
            state: What it gave.
            prompts: The rows of the run's data.
            keep: Stores a value; returns a reference to it.

        Raises:
            CheckpointError: The row of a group is not in `prompts`.
        """
        rows = {prompt.id: prompt for prompt in prompts}
        self.useful_share = state["useful_share"]
        self.surplus = deque(
            header_from_text(text, prompt_with_id(prompt_id_of(text), rows), keep) for text in state["surplus"]
        )
