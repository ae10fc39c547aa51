"""Rollouts that run ahead of the training: engines, tools and rewards go on while the actor learns."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from rl.batches import GroupHeader
from rl.cluster.prompt_rollouts import OnGroup, PromptRollouts, tell_nobody
from rl.config.kinds import StalenessStrategy
from rl.config.schema import Config
from rl.observability.clock import wall_time
from rl.observability.staleness import WaitHint, staleness_metrics
from rl.rollout.ahead import Choice, RunAhead
from rl.rollout.workers import PromptBatch, Workers, training_sampling
from rl.types import Prompt, WeightUpdate

logger = logging.getLogger(__name__)


class AheadRollouts(PromptRollouts):
    """Rollouts under a bound on their age (`rl.interfaces.Rollouts`).

    A worker goes on with its groups while the driver is busy elsewhere. A publish interrupts generation; the turns go
    on under the new weights, as another span. Which groups a step trains on is in `rl.rollout.ahead`.

    Arguments are those of `PromptRollouts`.
    """

    def __init__(
        self, workers: Workers, prompts: list[Prompt], config: Config, *, on_group: OnGroup = tell_nobody
    ) -> None:
        super().__init__(workers, prompts, config, on_group=on_group)
        rl = config.rl_config
        self.ahead = RunAhead(
            self.metric,
            max_staleness=rl.max_staleness,
            over_sample_rate=rl.over_sample_rate,
            drops_late=rl.staleness_strategy is StalenessStrategy.DROP,
            drop_overlong=rl.overlong_filter_enable,
        )
        self._training = PromptBatch(rl.n_samples_per_prompt, training_sampling(config))
        self._stream: Iterator[tuple[int, GroupHeader]] | None = None
        """The groups of `_training` as they end."""
        self._is_resumed = False
        """Groups that were under way at the checkpoint have not started again yet."""
        self._left_at: float | None = None
        """When the last `take` ended."""
        self._keeps_rows = config.megatron_training.record_tokens_every > 0
        self._hint = WaitHint()

    def take(
        self, num_prompts: int, metrics: MutableMapping[str, float], *, step: int = 0, is_recorded: bool = False
    ) -> list[GroupHeader]:
        """Wait for the groups of the step, and start those of later ones; see `rl.interfaces.Rollouts`.

        With `filter_groups_enable` each group whose trajectories all score the same is replaced by a new prompt. At
        most as many groups are taken as in step with the training, uninformative ones too. The last batch of
        `total_epochs` may be smaller.
        """
        self._begin_turn()
        assert self._published is not None, "the loop begins with a publish"
        version, start = self._published.version, time.monotonic()
        num_steps = self.config.megatron_training.train_iters - step
        self._batch = self._training
        if self._left_at is None:
            self.workers.call("restart_clocks", what="restarting the clocks")
        self._start_again(version)
        self._start(num_prompts, num_steps, version)
        limit = self._prompt_limit(num_prompts)
        while (choice := self.ahead.choose(num_prompts, limit, version)) is None:
            has_found = self._wait_for_group()
            assert has_found, "a group that is not complete is under way"
            self._count_groups(self.ahead.num_filled(num_prompts), num_prompts)
            complete = list(self.ahead.complete())
            if len(complete) >= num_prompts:  # a dead service makes every group uninformative
                self._check(complete)
            self._start(num_prompts, num_steps, version)
        groups, num_filled = self._close(choice, version, is_recorded=is_recorded)
        self._check(groups)
        self._report_missing(num_prompts, num_filled, len(groups), metrics)
        self._report(groups, choice, version, start, metrics)
        return groups

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine; see `rl.interfaces.Rollouts`."""
        if not self.config.rl_config.partial_rollout:
            self.end_whole()
        super().update_weights(update)

    def leave_devices(self) -> None:
        """Put the engines to sleep; what is under way waits until they wake."""
        if not self.config.rl_config.partial_rollout:
            self.end_whole()
        super().leave_devices()

    def expected_steps(self, completed: int) -> int | None:
        """Expected steps of the whole run; see `PromptCursor.expected_steps`."""
        return self.cursor.expected_steps(completed, len(self.ahead.open))

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint's state: the place in the data and the open groups."""
        return {"cursor": self.cursor.state_dict(), "ahead": self.ahead.state_dict(self.workers.fetch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the place in the data and the open groups from a checkpoint."""
        self.cursor.load_state_dict(state["cursor"])
        if "ahead" in state:  # else the run was in step until now
            self.ahead.load_state_dict(state["ahead"], self.prompts, self.workers.keep)
            self._is_resumed = True
        self._report_left(len(state.get("buffer", {}).get("surplus", ())))

    def end_whole(self) -> None:
        """Wait until all that is under way has ended, and start nothing meanwhile."""
        self._training.is_held = True
        while self._wait_for_group():
            pass
        self._training.is_held = False

    def _start_again(self, version: int) -> None:
        """Once after a resume: start what was under way at the checkpoint."""
        if self._is_resumed:
            self._training.waiting.extend(self.ahead.start_again(version))
            self._training.num_added = self.ahead.num_started
            self._is_resumed = False

    def _start(self, num_prompts: int, num_steps: int, version: int) -> None:
        prompts = self._next_prompts(self.ahead.num_to_start(num_prompts, num_steps))
        self.ahead.start(prompts, version)
        self._training.add(prompts)

    def _wait_for_group(self) -> bool:
        """Wait until another group is complete; False where none is under way."""
        if self._stream is None:
            self._stream = self.workers.run(self._training)
        found = next(self._stream, None)
        if found is None:
            self._stream = None
            return False
        self.ahead.add(*found, keeps_all_rows=self._keeps_rows)
        return True

    def _close(self, choice: Choice, version: int, *, is_recorded: bool) -> tuple[list[GroupHeader], int]:
        """Take the groups of a choice, and drop those that are late; returns the number of informative ones too."""
        num_filled = sum(self.ahead.open[number].is_informative for number in choice.taken)
        for number in choice.late:
            late = self.ahead.open[number]
            logger.warning(
                "group %s: dropped, it is not complete %d steps after its start and rl_config.max_staleness is %d",
                late.prompt.id, version - late.version, self.config.rl_config.max_staleness,
            )  # fmt: skip
        self._training.dropped.update(choice.late)
        return self.ahead.take(choice, keeps_all_rows=is_recorded), num_filled

    def _report(
        self,
        groups: Sequence[GroupHeader],
        choice: Choice,
        version: int,
        start: float,
        metrics: MutableMapping[str, float],
    ) -> None:
        now = time.monotonic()
        since = start if self._left_at is None else self._left_at
        self._report_busy(now - since, metrics)
        metrics["rollout/trainer_wait_share"] = (now - start) / max(now - since, 1e-9)
        metrics["rollout/waiting_groups"] = float(sum(1 for _ in self.ahead.complete()))
        metrics["rollout/open_groups"] = float(len(self.ahead.open)) - metrics["rollout/waiting_groups"]
        metrics["rollout/late_groups"] = float(len(choice.late))
        metrics.update(staleness_metrics(groups, version, wall_time()))
        if self._left_at is not None:  # the first step has nothing to overlap with
            self._hint.observe(metrics)
        self._left_at = now
