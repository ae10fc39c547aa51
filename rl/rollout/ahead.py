"""Groups that are sampled ahead of the step that trains on them, under a bound on their age.

Prompts start in order. A step takes complete groups in the order of their prompts, so which groups are trained on does
not depend on how long they took: nothing that ends first is over-represented.

Let B be the groups of a step, k the bound on staleness, o the share of groups to sample beyond what is needed. At most
(k + 1 + o) B groups are open: under way, or complete and not taken. Each step takes the first B of them, so a group is
taken at the latest k steps after the one in which it started, one more with o > 0. With o > 0 a step may pass over
groups that are not complete, as long as those passed over still fit into the steps that are left to them.

Sources: AReaL, arXiv:2505.24298, section 4.1 (the bound, interrupted generation); APRIL, arXiv:2509.18521 (more groups
than needed). Both train on what ends first; here the order of the prompts decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.algorithms.filters import is_informative
from rl.batches import GroupHeader
from rl.data.prompts import prompt_with_id
from rl.rollout.group_text import header_from_text, to_text
from rl.types import Prompt


@dataclass(slots=True)
class OpenGroup:
    """A prompt that has started and was not taken."""

    prompt: Prompt
    version: int
    """Weights that were published when it started; no token of it is older."""
    group: GroupHeader | None = None
    """None: under way."""
    is_informative: bool = False


@dataclass(slots=True, frozen=True)
class Choice:
    """What a step takes, by the groups' numbers."""

    taken: tuple[int, ...]
    """Complete groups in order of their prompts, uninformative ones among them."""
    late: tuple[int, ...] = ()
    """Those to drop: their last step has come, and they are not complete."""


class RunAhead:
    """The open groups, numbered from 0 in the order in which they start.

    Args:
        metric: What must differ within a group, as `rl_config.filter_groups_metric`; None: every group counts.
        drop_overlong: As `rl_config.overlong_filter_enable`.
        max_staleness: k.
        over_sample_rate: o, from 0 to 1.
        drops_late: Drop a group whose last step has come and which is not complete, once others fill the batch; else
            wait for it.
    """

    def __init__(
        self,
        metric: str | None,
        *,
        max_staleness: int,
        over_sample_rate: float = 0.0,
        drops_late: bool = False,
        drop_overlong: bool = False,
    ) -> None:
        self.metric, self.drop_overlong = metric, drop_overlong
        self.drops_late, self.over_sample_rate = drops_late, over_sample_rate
        self.bound = max_staleness + (over_sample_rate > 0)
        """Publishes that a group may lag behind."""
        self._ahead = max_staleness + 1 + over_sample_rate
        self.open: dict[int, OpenGroup] = {}
        self.num_started = 0

    def num_to_start(self, num_wanted: int, num_steps: int) -> int:
        """Prompts to start now, so that enough open groups may turn out informative.

        Args:
            num_wanted: B.
            num_steps: Steps that are left, this one included; no group starts for later ones.
        """
        num_hoped_for = sum(one.group is None or one.is_informative for one in self.open.values())
        return max(0, math.ceil(min(self._ahead, num_steps) * num_wanted) - num_hoped_for)

    def start(self, prompts: Sequence[Prompt], version: int) -> None:
        """Prompts start under the weights of `version`."""
        for prompt in prompts:
            self.open[self.num_started] = OpenGroup(prompt, version)
            self.num_started += 1

    def add(self, number: int, group: GroupHeader, *, keeps_all_rows: bool = False) -> None:
        """A group is complete.

        Args:
            number: Its number.
            group: The scored group.
            keeps_all_rows: Keep the rows of an uninformative group too, so that they can be recorded.
        """
        one = self.open[number]
        one.group = group
        one.is_informative = self.metric is None or is_informative(group, self.metric, drop_overlong=self.drop_overlong)
        if not one.is_informative and not keeps_all_rows:
            group.rows = []  # not trained on, so the object store may free them

    def choose(self, num_wanted: int, limit: float, version: int) -> Choice | None:
        """What the step takes; None while it has to wait.

        Args:
            num_wanted: B, informative groups.
            limit: The most groups to take, uninformative ones too.
            version: The published weights.

        Returns:
            Fewer than B informative groups only at the limit, or where every open group is complete.
        """
        taken: list[int] = []
        late: list[int] = []
        num_passed = num_informative = 0
        for number, one in self.open.items():
            if one.group is None:
                if self.over_sample_rate > 0 and version + 1 + num_passed // num_wanted <= one.version + self.bound:
                    num_passed += 1
                elif self.drops_late and version >= one.version + self.bound:
                    late.append(number)
                else:
                    return None
                continue
            taken.append(number)
            num_informative += one.is_informative
            if num_informative == num_wanted or len(taken) >= limit:
                return Choice(tuple(taken), tuple(late))
        return Choice(tuple(taken)) if not (num_passed or late) else None

    def take(self, choice: Choice, *, keeps_all_rows: bool = False) -> list[GroupHeader]:
        """Close the groups of a choice.

        Args:
            choice: From `choose`.
            keeps_all_rows: As in `add`.

        Returns:
            Those that are taken.
        """
        for number in choice.late:
            del self.open[number]
        groups: list[GroupHeader] = []
        for one in map(self.open.pop, choice.taken):
            assert one.group is not None, "only complete groups are chosen"
            if not one.is_informative and not keeps_all_rows:
                one.group.rows = []
            groups.append(one.group)
        return groups

    def num_filled(self, num_wanted: int) -> int:
        """Informative groups that are complete, at most B."""
        return min(num_wanted, sum(one.is_informative for one in self.open.values()))

    def complete(self) -> Iterator[GroupHeader]:
        """The complete groups among the open ones."""
        return (one.group for one in self.open.values() if one.group is not None)

    def state_dict(self, fetch: Callable[[Any], Any]) -> dict[str, Any]:
        """State for a checkpoint: complete groups as a whole, those under way by their prompt's id.

        Args:
            fetch: Resolves a reference of a `GroupHeader`.
        """
        saved: list[dict[str, Any]] = []
        for one in self.open.values():
            entry: dict[str, Any] = {"id": one.prompt.id, "version": one.version}
            if one.group is not None:
                text = to_text({"id": one.prompt.id}, fetch(one.group.record), fetch(one.group.rows))
                entry |= {"group": text, "is_informative": one.is_informative}
            saved.append(entry)
        return {"open": saved}

    def load_state_dict(self, state: Mapping[str, Any], prompts: Iterable[Prompt], keep: Callable[[Any], Any]) -> None:
        """Continue from a `state_dict`; what was under way waits for `start_again`.

        Args:
            state: What it gave.
            prompts: The rows of the run's data.
            keep: Stores a value; returns a reference to it.

        Raises:
            CheckpointError: The row of a group is not in `prompts`.
        """
        rows = {prompt.id: prompt for prompt in prompts}
        self.open = {}
        for number, entry in enumerate(state["open"]):
            prompt = prompt_with_id(entry["id"], rows)
            one = self.open[number] = OpenGroup(prompt, entry["version"])
            if "group" in entry:
                one.group = header_from_text(entry["group"], prompt, keep)
                one.is_informative = entry["is_informative"]
        self.num_started = len(self.open)

    def start_again(self, version: int) -> list[tuple[int, Prompt]]:
        """Start the groups that were under way at the checkpoint, under the weights of `version`.

        Returns:
            Their numbers and prompts.
        """
        found = [(number, one) for number, one in self.open.items() if one.group is None]
        for _, one in found:
            one.version = version
        return [(number, one.prompt) for number, one in found]
