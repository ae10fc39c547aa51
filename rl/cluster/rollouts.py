"""Rollouts in step with the training: all groups of a step are sampled by the newest weights."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from rl.batches import GroupHeader
from rl.cluster.prompt_rollouts import OnGroup, PromptRollouts, tell_nobody
from rl.config.schema import Config
from rl.rollout.buffer import GroupBuffer
from rl.rollout.workers import PromptBatch, Workers, training_sampling
from rl.types import Prompt


class RolloutGroup(PromptRollouts):
    """Rollouts that end before the update begins (`rl.interfaces.Rollouts`).

    Arguments are those of `PromptRollouts`.
    """

    def __init__(
        self, workers: Workers, prompts: list[Prompt], config: Config, *, on_group: OnGroup = tell_nobody
    ) -> None:
        super().__init__(workers, prompts, config, on_group=on_group)
        self.buffer = GroupBuffer(self.metric, drop_overlong=config.rl_config.overlong_filter_enable)

    def take(
        self, num_prompts: int, metrics: MutableMapping[str, float], *, step: int = 0, is_recorded: bool = False
    ) -> list[GroupHeader]:
        """Run the next prompts to scored groups; see `rl.interfaces.Rollouts`.

        With `filter_groups_enable` each group whose trajectories all score the same is replaced by a new prompt at
        once, up to `filter_groups_max_batches` * `num_prompts` prompts; if that is 0 or less, up to the size of the
        dataset. The uninformative groups are returned too: they count in the metrics, and `plan_batch` drops them.
        The choice of prompts does not depend on the order in which groups end. Surplus groups come first in the next
        call (`rl.rollout.buffer`). The last batch of `total_epochs` may be smaller.
        """
        self._begin_turn()
        self.workers.call("restart_clocks", what="restarting the clocks")
        start = time.monotonic()
        limit = int(min(self._prompt_limit(num_prompts), self.cursor.num_left))
        filling = self.buffer.begin(num_prompts, limit, keeps_all_rows=is_recorded)
        batch = self._batch = PromptBatch(self.config.rl_config.n_samples_per_prompt, training_sampling(self.config))
        self._groups = (filling.num_filled, num_prompts)
        batch.add(self._next_prompts(filling.num_to_start()))
        for order, group in self.workers.run(batch):
            filling.add(order, group)
            self._count_groups(filling.num_filled, num_prompts)
            if len(filling.finished) >= num_prompts:  # a dead service makes every group uninformative
                self._check(list(filling.finished.values()))
            batch.add(self._next_prompts(filling.num_to_start()))
        groups = self.buffer.end(filling)
        self._check(list(filling.finished.values()))
        self._report_missing(num_prompts, filling.num_filled, filling.num_started, metrics)
        metrics["rollout/carried_groups"] = float(len(filling.carried))
        metrics["rollout/surplus_groups"] = float(len(self.buffer.surplus))
        if filling.finished:
            self._report_busy(time.monotonic() - start, metrics)
        return groups

    def expected_steps(self, completed: int) -> int | None:
        """Expected steps of the whole run; see `PromptCursor.expected_steps`."""
        return self.cursor.expected_steps(completed, len(self.buffer.surplus))

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint's state: the place in the data and the surplus groups."""
        return {"cursor": self.cursor.state_dict(), "buffer": self.buffer.state_dict(self.workers.fetch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the place in the data and the surplus groups from a checkpoint."""
        self.cursor.load_state_dict(state["cursor"])
        if "buffer" in state:  # older checkpoints have none
            self.buffer.load_state_dict(state["buffer"], self.prompts, self.workers.keep)
        self._report_left(len(state.get("ahead", {}).get("open", ())))
