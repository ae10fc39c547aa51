"""Which batch ids a client is offered, so that each group it samples is sent, and sent once.

A client of dspy 3.0.4 or later asks twice in each of its steps: before it samples, where any new id lets it go on, and
after, where it sends one group for each id it has not used. Groups beyond the ids wait in its queue, and while the
queue covers the ids it throws away what it samples; ids beyond the groups are filled with copies, whole rounds of all
groups, and what is left of the last round is sent first in the next step.

So the server counts completions between the two questions: `num_generations` of them make a group, and some belong to
none (a repeated request). It offers that many ids, and one for each copy that the client still holds. Copies are
recognized and dropped.

    groups sampled  ids offered  sent            left in the queue
    8               8            8               0
    8               12           8 + 4 copies    4
    8               4 + 8        4 copies + 8    0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rl.serving.errors import ApiError

_MOST = 100_000


@dataclass(slots=True)
class BatchIds:
    """The ids of one training, step by step.

    Args:
        num_generations: Samples of a group.
    """

    num_generations: int
    _first: int = 0
    """The first id of this step."""
    _num_offered: int = 0
    _taken: set[int] = field(default_factory=set)
    _num_new: int = 0
    """Groups of this step that are no copies."""
    _num_held: int = 0
    """Copies that the client's queue still holds from the step before."""
    _num_before: int | None = None
    """Completions before the client began to sample."""

    def offer(self, num_completions: int) -> list[int]:
        """The ids of this step that are not used yet.

        Args:
            num_completions: Completions so far, since the beginning of the training.
        """
        if self._num_before is None:
            self._num_before = num_completions
        if not self._taken:
            groups = math.ceil((num_completions - self._num_before) / self.num_generations)
            wanted = min(groups + self._num_held, _MOST) if groups else 1
            self._num_offered = max(self._num_offered, wanted)
        return [number for number in self._all() if number not in self._taken]

    def check(self, batch_id: int) -> None:
        """Check an id that a client uses.

        Raises:
            ApiError: It was not offered in this step, or it is used.
        """
        if batch_id in self._taken or batch_id < self._first:
            raise ApiError(409, f"batch_id: {batch_id} is used. Ask `status` for pending_batch_ids.", param="batch_id")
        if batch_id not in self._all():
            raise ApiError(
                409, f"batch_id: {batch_id} was not offered. Ask `status` for pending_batch_ids.", param="batch_id"
            )

    def take(self, batch_id: int, *, is_copy: bool) -> None:
        """Use an id.

        Args:
            batch_id: Checked.
            is_copy: Its group was sent before.
        """
        self._taken.add(batch_id)
        self._num_new += not is_copy

    @property
    def expects_copy(self) -> bool:
        """Whether the client's queue gives a group of the step before next."""
        return len(self._taken) < self._num_held

    @property
    def is_used(self) -> bool:
        """Whether a group of this step has come."""
        return bool(self._taken)

    @property
    def is_complete(self) -> bool:
        """Whether a group has come for each id."""
        return bool(self._taken) and len(self._taken) == self._num_offered

    def begin_step(self) -> None:
        """Go on to the next step: what was offered is over."""
        self._num_held = self._held()
        self._first += self._num_offered
        self._num_offered, self._num_new, self._num_before, self._taken = 0, 0, None, set()

    def _all(self) -> range:
        return range(self._first, self._first + self._num_offered)

    def _held(self) -> int:
        """Copies that the client's queue holds after this step."""
        sent, missing = len(self._taken), len(self._taken) - self._num_held
        if missing <= 0 or not self._num_new:
            return max(0, self._num_held - sent)
        return math.ceil(missing / self._num_new) * self._num_new - missing
