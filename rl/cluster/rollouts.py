"""The driver's side of the rollout: chooses prompts, collects scored groups, tracks the place in the data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

from rl.algorithms.filters import check_filter_metric
from rl.batches import GroupHeader, RolloutStatus
from rl.cluster.engine_rollouts import EngineRollouts
from rl.config.schema import Config
from rl.data.cursor import prompt_cursor
from rl.data.prompts import id_in_epoch
from rl.errors import RolloutError
from rl.rollout.buffer import Filling, GroupBuffer
from rl.rollout.workers import PromptBatch, Workers, training_sampling
from rl.types import Prompt, Sampling, StopReason, ToolStatus

logger = logging.getLogger(__name__)


class RolloutGroup(EngineRollouts):
    """All rollout workers, which take prompts of a dataset (`rl.interfaces.Rollouts`).

    Args:
        workers: Their engines must be started.
        prompts: The training prompts, without those that are too long.
        on_group: Called with (groups done, groups wanted) after each group, for the progress bar.
    """

    def __init__(
        self,
        workers: Workers,
        prompts: list[Prompt],
        config: Config,
        *,
        on_group: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> None:
        super().__init__(workers, config)
        self.prompts, self.on_group = prompts, on_group
        self.cursor = prompt_cursor(prompts, config)
        rl = config.rl_config
        metric = rl.filter_groups_metric if rl.filter_groups_enable else None
        self.buffer = GroupBuffer(metric, drop_overlong=rl.overlong_filter_enable)
        self._batch: PromptBatch | None = None
        """The prompts of the current or last call, for `status`."""
        self._groups = (0, 0)

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
                self._check(filling)
            batch.add(self._next_prompts(filling.num_to_start()))
        groups = self.buffer.end(filling)
        self._check(filling)
        self._report(filling, time.monotonic() - start, metrics)
        return groups

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[GroupHeader]:
        """Run given prompts; see `rl.interfaces.Rollouts`."""
        self._begin_turn()
        batch = self._batch = PromptBatch(num_samples, sampling, keeps_rows=False)
        self._groups = (0, len(prompts))
        batch.add(prompts)
        finished: dict[int, GroupHeader] = {}
        for order, group in self.workers.run(batch):
            finished[order] = group
            self._count_groups(len(finished), len(prompts))
        groups = [finished[order] for order in sorted(finished)]
        self._check_tools(groups)
        return groups

    def status(self) -> RolloutStatus:
        """What the rollouts are doing; see `rl.interfaces.Rollouts`."""
        done, wanted = self._groups
        waiting = len(self._batch.waiting) if self._batch is not None else 0
        return RolloutStatus(done, wanted, self.workers.num_running, waiting, self.workers.num_alive)

    def expected_steps(self, completed: int) -> int | None:
        """Expected steps of the whole run; see `PromptCursor.expected_steps`."""
        return self.cursor.expected_steps(completed, len(self.buffer.surplus))

    def next_step(self, completed: int) -> int:
        """Number of the next step: none is left out."""
        return completed

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint's state: the place in the data and the surplus groups."""
        return {"cursor": self.cursor.state_dict(), "buffer": self.buffer.state_dict(self.workers.fetch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the place in the data and the surplus groups from a checkpoint."""
        self.cursor.load_state_dict(state["cursor"])
        if "buffer" in state:  # older checkpoints have none
            self.buffer.load_state_dict(state["buffer"], self.prompts, self.workers.keep)

    def _count_groups(self, done: int, wanted: int) -> None:
        self._groups = (done, wanted)
        self.on_group(done, wanted)

    def _prompt_limit(self, num_prompts: int) -> int:
        """The maximum number of prompts for one batch."""
        rl = self.config.rl_config
        if not rl.filter_groups_enable:
            return num_prompts
        if rl.filter_groups_max_batches > 0:
            return rl.filter_groups_max_batches * num_prompts
        return max(num_prompts, len(self.prompts))

    def _check(self, filling: Filling) -> None:
        groups = list(filling.finished.values())
        self._check_tools(groups)
        if filling.metric is not None:
            check_filter_metric(groups, filling.metric)

    def _report(self, filling: Filling, elapsed_s: float, metrics: MutableMapping[str, float]) -> None:
        """Report how the batch was filled, and how busy engines and rewards were."""
        missing = filling.num_wanted - filling.num_filled
        if missing and not self.cursor.num_left:
            logger.info("the prompts are used up: %d of %d groups are left", filling.num_filled, filling.num_wanted)
        elif missing:
            logger.warning(
                "rl_config.filter_groups_max_batches: only %d of %d groups have differing scores after %d prompts, "
                "and the step learns from no more.", filling.num_filled, filling.num_wanted, filling.num_started,
            )  # fmt: skip
        metrics["rollout/missing_groups"] = float(missing)
        metrics["rollout/carried_groups"] = float(len(filling.carried))
        metrics["rollout/surplus_groups"] = float(len(self.buffer.surplus))
        busy = self.workers.call("restart_clocks", what="reading the clocks")
        if filling.finished and elapsed_s > 0:
            idle_s = sum(max(0.0, elapsed_s - one.engine_s) for one in busy)
            metrics["rollout/engine_idle_share"] = idle_s / (len(busy) * elapsed_s)
            metrics["timing_s/reward"] = max(one.reward_s for one in busy)

    def _next_prompts(self, count: int) -> list[Prompt]:
        """The next prompts. Ids contain the epoch, so a repeated prompt is sampled with a different seed."""
        visits = self.cursor.take_with_epochs(count)
        return [replace(self.prompts[i], id=id_in_epoch(self.prompts[i].id, epoch)) for i, epoch in visits]

    def _check_tools(self, groups: list[GroupHeader]) -> None:
        trajectories = [t for g in groups for t in g.trajectories]
        failed = [t for t in trajectories if t.stop_reason is StopReason.TOOL_UNAVAILABLE]
        share = len(failed) / max(1, len(trajectories))
        if share > self.config.rl_config.max_tool_unavailable_share:
            names = sorted({r.name for t in failed for r in t.results if r.status is ToolStatus.UNAVAILABLE})
            raise RolloutError(
                f"tool {', '.join(names)}: its service did not answer in {len(failed)} of {len(trajectories)} "
                "trajectories. Start the service, or check its address in rl_config.tool_config_path."
            )
