"""The rollouts of a service, as the training loop sees them: groups come from clients, in the order they end."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.algorithms.filters import is_informative
from rl.batches import GroupHeader, RolloutStatus
from rl.cluster.engine_rollouts import EngineRollouts
from rl.cluster.serving import BatchClosed, Broken, EndWanted, Front, GroupEvent, SaveWanted
from rl.config.schema import Config
from rl.errors import RolloutError
from rl.observability.clock import wall_time
from rl.observability.run_directory import RunDirectory
from rl.rollout.group_text import header_from_text, prompt_of
from rl.rollout.workers import Workers
from rl.serving.journal import Journal, read_journal
from rl.types import Prompt, Sampling, Span, WeightUpdate

logger = logging.getLogger(__name__)

_REMINDER_S = 60.0


class TrainingEndedByClientError(Exception):
    """A client ended the training. Not a failure."""


@dataclass(slots=True)
class _Tally:
    """What one step met besides its groups."""

    num_counted: int = 0
    """Groups that count towards the batch."""
    num_stale: int = 0
    num_unscored: int = 0


class ServedRollouts(EngineRollouts):
    """Groups of clients (`rl.interfaces.Rollouts`).

    Args:
        workers: The engines.
        front: The service.
        config: The training's.
        run_directory: The training's; its `journal` has the groups that no checkpoint has.
        journals: Those of the runs that are gone on with.
        on_group: Called with (groups done, groups wanted) after each group, for the progress bar.
    """

    def __init__(
        self,
        workers: Workers,
        front: Front,
        config: Config,
        run_directory: Path,
        *,
        journals: Sequence[Path] = (),
        on_group: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> None:
        super().__init__(workers, config)
        self.on_group = on_group
        self.on_save: Callable[[str], Path] | None = None
        """Saves the weights for a client, under its name for them, and returns their folder."""
        self.step = 0
        """Completed steps."""
        self.has_begun = False
        """Clients' groups are taken."""
        self._front, self._run_directory, self._journals = front, run_directory, journals
        self._journal = Journal(RunDirectory(run_directory).journal)
        self._recovered: deque[GroupEvent] = deque()
        """Acknowledged before a restart."""
        self._waiting: deque[Any] = deque()
        """Events that were not taken yet."""
        self._taken: list[int] = []
        """Groups of earlier steps that are still in the journal: trained on, or dropped."""
        self._current: list[int] = []
        """Those of the step that is being collected."""
        self._covered: list[int] = []
        """Those of `_taken` that a checkpoint has, once it is complete."""
        self._closed: list[int] = []
        """Numbers of the batches that clients closed and that are trained on in this step."""
        self._in_checkpoint: frozenset[int] = frozenset()
        """Groups of the journals that the checkpoint has."""
        self._next = 0
        """Number of the next group to be opened."""
        self._version = 0
        self._groups = (0, 0)

    def take(
        self, num_prompts: int, metrics: MutableMapping[str, float], *, step: int = 0, is_recorded: bool = False
    ) -> list[GroupHeader]:
        """Wait for scored groups of clients; see `rl.interfaces.Rollouts`.

        It returns when there are enough, or when a client closed the batch. With `filter_groups_enable` only groups
        whose scores differ count. A group without any score does not count. Those that are too old are dropped.

        Raises:
            TrainingEndedByClientError: A client ended the training.
            RolloutError: The service or all engines died.
        """
        self.step = step
        self._forget_covered()
        self._begin()
        self._begin_turn()
        start, start_wall = time.monotonic(), wall_time()
        self.workers.call("restart_clocks", what="restarting the clocks")
        self._front.begin_sampling(step, self._closed)
        self._closed = []
        groups, tally = self._collect(num_prompts)
        self._taken += self._current
        self._current = []
        self._front.begin_update(
            _mean_score(groups),
            {"stale": tally.num_stale, "unscored": tally.num_unscored},
            stops_requests=self.turns is not None,
        )
        self._spans.append(Span("service", "collect", start_wall, wall_time()))
        self._report(groups, tally, time.monotonic() - start, metrics)
        return groups

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[GroupHeader]:
        """Nothing: clients evaluate through the address."""
        assert not prompts, "preflight refuses evaluation data"
        return []

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine."""
        super().update_weights(update)
        self._version = update.version

    def status(self) -> RolloutStatus:
        """What the rollouts are doing; see `rl.interfaces.Rollouts`."""
        return RolloutStatus(*self._groups, self.workers.num_running, 0, self.workers.num_alive)

    def expected_steps(self, completed: int) -> int | None:
        """Unknown: clients decide."""
        return None

    def next_step(self, completed: int) -> int:
        """Number of the next step: none is left out."""
        return completed

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint's state: which groups of the journal it covers."""
        self._covered = list(self._taken)
        return {"served": {"next": self._next, "covered": self._covered}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out the groups that the checkpoint covers."""
        self._next, self._in_checkpoint = state["served"]["next"], frozenset(state["served"]["covered"])

    def serve_on(self) -> None:
        """Give the engines their weights back, if the actor has the devices: the model stays served."""
        self._begin_turn()

    def _begin(self) -> None:
        """Before the first step: take over the journals, then let clients in."""
        if self.has_begun:
            return
        texts = {number: text for folder in self._journals for number, text in read_journal(folder)}
        names = set()
        for number in sorted(texts.keys() - self._in_checkpoint):
            prompt = prompt_of(texts[number])
            header = header_from_text(texts[number], prompt, self.workers.keep)
            self._recovered.append(GroupEvent(number, header))
            self._journal.write_text(number, texts[number])
            names.add(prompt.id)
        self._next = max([self._next, *(number + 1 for number in texts)])
        self._front.use(self.config, self._run_directory, self._next, names)
        self.has_begun = True
        if self._recovered:
            logger.info("%d groups that were acknowledged before are trained on first", len(self._recovered))

    def _forget_covered(self) -> None:
        """Clear the journal of what the last checkpoint has; it is complete by now."""
        if self._covered:
            self._journal.remove(self._covered)
            self._taken = self._taken[len(self._covered) :]
            self._covered = []

    def _collect(self, num_wanted: int) -> tuple[list[GroupHeader], _Tally]:
        groups: list[GroupHeader] = []
        tally, serve, rl = _Tally(), self.config.serve_config, self.config.rl_config
        limit = rl.filter_groups_max_batches * num_wanted if rl.filter_groups_enable else 0
        self._count(tally, num_wanted)
        while serve.batch_trigger == "client" or tally.num_counted < num_wanted:
            event = self._next_event(tally.num_counted, num_wanted)
            if isinstance(event, BatchClosed):
                if groups:
                    self._closed.append(event.number)
                    break
                self._front.batches_closed([event.number])
            elif isinstance(event, SaveWanted):
                self._save(event.name)
            elif isinstance(event, EndWanted):
                self._waiting.clear()
                raise TrainingEndedByClientError
            elif isinstance(event, Broken):
                raise RolloutError(event.reason)
            elif self._is_fresh(event, tally):
                groups.append(event.header)
                tally.num_counted += self._counts(event.header, tally)
            self._count(tally, num_wanted)
            if 0 < limit <= len(groups):
                logger.warning(
                    "rl_config.filter_groups_max_batches: only %d of %d groups have differing scores after %d groups, "
                    "and the step learns from no more.", tally.num_counted, num_wanted, len(groups),
                )  # fmt: skip
                break
        return groups, tally

    def _save(self, name: str) -> None:
        assert self.on_save is not None, "the page said how to save"
        folder = self.on_save(name)
        self._begin_turn()  # the actor may have taken the devices
        self._front.saved(name, folder)

    def _next_event(self, done: int, wanted: int) -> Any:
        """The next group of a journal, or what a client did next."""
        if self._recovered:
            return self._recovered.popleft()
        since = time.monotonic()
        while not self._waiting:
            self._waiting.extend(self._front.next_events())
            if not self._waiting and time.monotonic() - since > _REMINDER_S:
                since = time.monotonic()
                logger.info("waiting for clients: %d of %d groups", done, wanted)
        return self._waiting.popleft()

    def _is_fresh(self, event: GroupEvent, tally: _Tally) -> bool:
        """Whether a group's weights are new enough; it counts as taken in any case."""
        self._current.append(event.number)
        self._next = max(self._next, event.number + 1)
        versions = [v for t in event.header.trajectories for v in t.policy_versions]
        staleness = self._version - min(versions, default=self._version)
        if staleness <= self.config.serve_config.max_staleness:
            return True
        tally.num_stale += 1
        logger.warning(
            "group %s: dropped, its oldest weights are %d steps old and serve_config.max_staleness is %d",
            event.header.prompt.id, staleness, self.config.serve_config.max_staleness,
        )  # fmt: skip
        return False

    def _counts(self, header: GroupHeader, tally: _Tally) -> bool:
        rl = self.config.rl_config
        if all(t.score is None for t in header.trajectories):
            tally.num_unscored += 1
            return False
        return not rl.filter_groups_enable or is_informative(
            header, rl.filter_groups_metric, drop_overlong=rl.overlong_filter_enable
        )

    def _count(self, tally: _Tally, wanted: int) -> None:
        self._groups = (tally.num_counted, wanted)
        self.on_group(*self._groups)
        lost = {"dropped": tally.num_stale, "unscored": tally.num_unscored}
        self._front.progress({"done": tally.num_counted, "wanted": wanted, **lost})

    def _report(
        self, groups: Sequence[GroupHeader], tally: _Tally, elapsed_s: float, metrics: MutableMapping[str, float]
    ) -> None:
        trajectories = [t for group in groups for t in group.trajectories]
        metrics.update(self._front.protocol_metrics())
        metrics["serve/dropped_groups"] = float(tally.num_stale)
        metrics["serve/unscored_groups"] = float(tally.num_unscored)
        metrics["serve/lost_rollouts"] = float(sum(t.score is None for t in trajectories))
        staleness = [self._version - v for t in trajectories for v in t.policy_versions]
        if staleness:
            metrics["serve/staleness"] = float(max(staleness))
        busy = self.workers.call("restart_clocks", what="reading the clocks")
        if busy and elapsed_s > 0:
            idle_s = sum(max(0.0, elapsed_s - one.engine_s) for one in busy)
            metrics["rollout/engine_idle_share"] = idle_s / (len(busy) * elapsed_s)


def _mean_score(groups: Sequence[GroupHeader]) -> float | None:
    scores = [t.score for group in groups for t in group.trajectories if t.score is not None]
    return statistics.fmean(scores) if scores else None
