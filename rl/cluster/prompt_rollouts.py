"""Rollouts of a dataset's prompts: the place in the data, evaluation, and what a step must not go on with."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import replace

from rl.algorithms.filters import check_filter_metric
from rl.batches import GroupHeader, RolloutStatus
from rl.cluster.engine_rollouts import EngineRollouts
from rl.config.schema import Config
from rl.data.cursor import prompt_cursor
from rl.data.prompts import id_in_epoch
from rl.errors import RolloutError
from rl.rollout.workers import PromptBatch, Workers
from rl.types import Prompt, Sampling, StopReason, ToolStatus

logger = logging.getLogger(__name__)

OnGroup = Callable[[int, int], None]
"""Called with (groups done, groups wanted) after each group."""


def tell_nobody(done: int, wanted: int) -> None:
    """An `OnGroup` where there is no progress bar."""


class PromptRollouts(EngineRollouts):
    """What rollouts of a dataset share of `rl.interfaces.Rollouts`.

    Args:
        workers: Their engines must be started.
        prompts: The training prompts, without those that are too long.
        on_group: For the progress bar.
    """

    def __init__(
        self, workers: Workers, prompts: list[Prompt], config: Config, *, on_group: OnGroup = tell_nobody
    ) -> None:
        super().__init__(workers, config)
        self.prompts, self.on_group = prompts, on_group
        self.cursor = prompt_cursor(prompts, config)
        rl = config.rl_config
        self.metric = rl.filter_groups_metric if rl.filter_groups_enable else None
        """What must differ within a group; None: every group counts."""
        self._batch: PromptBatch | None = None
        """The prompts of the current or last call, for `status`."""
        self._groups = (0, 0)

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

    def next_step(self, completed: int) -> int:
        """Number of the next step: none is left out."""
        return completed

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

    def _next_prompts(self, count: int) -> list[Prompt]:
        """The next prompts. Ids contain the epoch, so a repeated prompt is sampled with a different seed."""
        visits = self.cursor.take_with_epochs(count)
        return [replace(self.prompts[i], id=id_in_epoch(self.prompts[i].id, epoch)) for i, epoch in visits]

    def _report_left(self, num_groups: int) -> None:
        """Say that a checkpoint of the other kind of rollouts has groups that are not continued."""
        if num_groups:
            logger.warning(
                "rl_config.max_staleness, over_sample_rate: one is 0 now and was not, or the reverse: %d groups that "
                "the checkpoint has beyond its step are not trained on.", num_groups,
            )  # fmt: skip

    def _check(self, groups: list[GroupHeader]) -> None:
        """What a step must not go on with."""
        self._check_tools(groups)
        if self.metric is not None:
            check_filter_metric(groups, self.metric)

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

    def _report_missing(
        self, num_wanted: int, num_filled: int, num_tried: int, metrics: MutableMapping[str, float]
    ) -> None:
        """Report groups that the batch lacks."""
        missing = num_wanted - num_filled
        if missing and not self.cursor.num_left:
            logger.info("the prompts are used up: %d of %d groups are left", num_filled, num_wanted)
        elif missing:
            logger.warning(
                "rl_config.filter_groups_max_batches: only %d of %d groups have differing scores after %d prompts, "
                "and the step learns from no more.", num_filled, num_wanted, num_tried,
            )  # fmt: skip
        metrics["rollout/missing_groups"] = float(missing)

    def _report_busy(self, elapsed_s: float, metrics: MutableMapping[str, float]) -> None:
        """Report how busy engines and rewards were since their clocks were restarted, and restart them."""
        busy = self.workers.call("restart_clocks", what="reading the clocks")
        if elapsed_s > 0:
            idle_s = sum(max(0.0, elapsed_s - one.engine_s) for one in busy)
            metrics["rollout/engine_idle_share"] = idle_s / (len(busy) * elapsed_s)
            metrics["timing_s/reward"] = max(one.reward_s for one in busy)
