"""The driver's side of the rollout: hands prompts to workers, collects scored groups, survives a worker's death."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import ray

from rl.algorithms.filters import check_filter_metric
from rl.cluster.health import get_all, result
from rl.cluster.relay import relay
from rl.cluster.turns import Turns
from rl.config.schema import Config
from rl.data.cursor import prompt_cursor
from rl.data.prompts import id_in_epoch
from rl.errors import RolloutError, WorkerDiedError
from rl.inference.router import Router
from rl.rollout.buffer import Filling, GroupBuffer
from rl.types import Group, Prompt, Sampling, StopReason, WeightUpdate

logger = logging.getLogger(__name__)

_GRACE_S = 120.0
"""Seconds beyond a trajectory's own deadline before its worker counts as hung."""
_PUBLISH_TIMEOUT_S = 600.0
_OVERCOMMIT = 2
"""Trajectories on a worker at once, over what its engine runs at once: some always wait for tools."""


@dataclass(slots=True)
class _Job:
    """One prompt on one worker."""

    order: int
    prompt: Prompt
    replica: int
    started: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Batch:
    """The prompts of one `take` or `evaluate`: those that wait for a place on a worker, and those under way."""

    num_samples: int
    sampling: Sampling
    num_added: int = 0
    waiting: deque[tuple[int, Prompt]] = field(default_factory=deque)
    """With the place of each in the batch."""
    running: dict[ray.ObjectRef, _Job] = field(default_factory=dict)

    def add(self, prompts: list[Prompt]) -> None:
        self.waiting.extend(enumerate(prompts, start=self.num_added))
        self.num_added += len(prompts)


class RolloutGroup:
    """All rollout workers.

    Args:
        workers: Handles by replica number; engines already started.
        prompts: The training prompts, those too long already dropped.
        config: The run's configuration.
        nodes: Ray's id of each worker's node.
        on_group: Called with (groups done, groups wanted) as they finish, for the progress bar.
    """

    def __init__(
        self,
        workers: list[Any],
        prompts: list[Prompt],
        config: Config,
        *,
        nodes: Sequence[str],
        on_group: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> None:
        self.workers = dict(enumerate(workers))
        self.nodes = dict(enumerate(nodes))
        self.router = Router(list(self.workers))
        self.prompts, self.config, self.on_group = prompts, config, on_group
        self.cursor = prompt_cursor(prompts, config)
        rl = config.rl_config
        metric = rl.filter_groups_metric if rl.filter_groups_enable else None
        self.buffer = GroupBuffer(metric, drop_overlong=rl.overlong_filter_enable)
        self.turns: Turns | None = None
        """With an actor on the same accelerators."""
        self._published: WeightUpdate | None = None
        self._has_weights = True

    def take(self, num_prompts: int, metrics: MutableMapping[str, float]) -> list[Group]:
        """Run the next prompts to scored groups; see `rl.interfaces.Rollouts`.

        With `filter_groups_enable` each group whose trajectories all score the same is replaced by a new prompt as
        soon as it is known, up to `filter_groups_max_batches` times `num_prompts` prompts, or where that is 0 or less,
        up to as many as the dataset has. The uninformative groups are returned too: they count in the metrics, and
        `make_samples` drops them. Which prompts are used does not depend on the order in which groups end, and groups
        beyond those wanted come first in the next call (`rl.rollout.buffer`). At the end of the last of `total_epochs`
        the batch has what there is.
        """
        self._begin_turn()
        self._call("restart_clocks", what="restarting the clocks", timeout_s=_PUBLISH_TIMEOUT_S)
        start = time.monotonic()
        filling = self.buffer.begin(num_prompts, int(min(self._prompt_limit(num_prompts), self.cursor.num_left)))
        batch = _Batch(self.config.rl_config.n_samples_per_prompt, self._training_sampling())
        batch.add(self._next_prompts(filling.num_to_start()))
        for order, group in self._run(batch):
            filling.add(order, group)
            self.on_group(filling.num_filled, num_prompts)
            if len(filling.finished) >= num_prompts:  # a dead service makes every group uninformative
                self._check(filling)
            batch.add(self._next_prompts(filling.num_to_start()))
        groups = self.buffer.end(filling)
        self._check(filling)
        self._report(filling, time.monotonic() - start, metrics)
        return groups

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[Group]:
        """Run given prompts; see `rl.interfaces.Rollouts`."""
        self._begin_turn()
        batch = _Batch(num_samples, sampling)
        batch.add(prompts)
        finished: dict[int, Group] = {}
        for order, group in self._run(batch):
            finished[order] = group
            self.on_group(len(finished), len(prompts))
        groups = [finished[order] for order in sorted(finished)]
        self._check_tools(groups)
        return groups

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine, which wakes those that sleep."""
        if self.turns is not None:
            self.turns.begin(self)
        local = relay(update, [self.nodes[replica] for replica in self.workers])
        updates = {replica: (local[self.nodes[replica]],) for replica in self.workers}
        self._call("update_weights", updates, what="loading published weights", timeout_s=_PUBLISH_TIMEOUT_S)
        self._published, self._has_weights = update, True

    def leave_devices(self) -> None:
        """Put the engines to sleep, which forget their weights."""
        self._call("sleep", what="putting the engines to sleep", timeout_s=_PUBLISH_TIMEOUT_S)
        self._has_weights = False

    def expected_steps(self, completed: int) -> int | None:
        """Steps of the whole run, as far as the prompts tell; see `PromptCursor.expected_steps`."""
        return self.cursor.expected_steps(completed, len(self.buffer.surplus))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the place in the data, and the groups that are left over."""
        return {"cursor": self.cursor.state_dict(), "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the place in the data that a checkpoint kept."""
        self.cursor.load_state_dict(state["cursor"])
        if "buffer" in state:  # not in checkpoints from before groups were carried over
            self.buffer.load_state_dict(state["buffer"], self.prompts)

    def _begin_turn(self) -> None:
        """Get the accelerators; where the actor had them without a publish, its last one is still there to load."""
        if self.turns is not None:
            self.turns.begin(self)
        if not self._has_weights:
            assert self._published is not None, "the loop begins with a publish"
            self.update_weights(self._published)

    def _prompt_limit(self, num_prompts: int) -> int:
        """Prompts that one batch may use."""
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
        """Say how the batch was filled, and what engines and rewards did meanwhile."""
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
        busy = self._call("restart_clocks", what="reading the clocks", timeout_s=_PUBLISH_TIMEOUT_S)
        if filling.finished and elapsed_s > 0:
            idle_s = sum(max(0.0, elapsed_s - one.engine_s) for one in busy)
            metrics["rollout/engine_idle_share"] = idle_s / (len(busy) * elapsed_s)
            metrics["timing_s/reward"] = max(one.reward_s for one in busy)

    def _next_prompts(self, count: int) -> list[Prompt]:
        """The next prompts, named after their epoch: met again, a prompt is sampled with other noise."""
        visits = self.cursor.take_with_epochs(count)
        return [replace(self.prompts[i], id=id_in_epoch(self.prompts[i].id, epoch)) for i, epoch in visits]

    def _training_sampling(self) -> Sampling:
        s = self.config.generate_config.sampling_config
        return Sampling(
            temperature=s.temperature, max_tokens=s.max_tokens, top_p=s.top_p, top_k=s.top_k, min_p=s.min_p,
            seed=self.config.megatron_training.seed,
        )  # fmt: skip

    def _call(
        self,
        method: str,
        arguments: Mapping[int, tuple[Any, ...]] = MappingProxyType({}),
        *,
        what: str,
        timeout_s: float,
    ) -> list[Any]:
        """Call every worker, with its own arguments; one that has died is taken out, and the others go on.

        Returns:
            What the living ones gave.
        """
        refs = {
            replica: getattr(worker, method).remote(*arguments.get(replica, ()))
            for replica, worker in self.workers.items()
        }
        results = []
        for replica, ref in refs.items():
            try:
                results += get_all([ref], what=f"{what}, rollout worker {replica}", timeout_s=timeout_s)
            except WorkerDiedError as error:
                self._bury(replica, error)
        return results

    def _run(self, batch: _Batch) -> Iterator[tuple[int, Group]]:
        """Yield groups with their places as they end, until none is left; the batch may grow meanwhile."""
        while batch.waiting or batch.running:
            self._dispatch(batch)
            done, _ = ray.wait(list(batch.running), num_returns=1, timeout=1.0)
            for ref in done:
                job = batch.running.pop(ref)
                try:
                    group = self._group(ref, job)
                except WorkerDiedError as error:
                    self._bury(job.replica, error)
                    batch.waiting.appendleft((job.order, job.prompt))
                    continue
                self.router.release(job.prompt.id)
                yield job.order, group
            self._end_hung(batch)

    def _dispatch(self, batch: _Batch) -> None:
        """Send prompts to workers with room: a trajectory's deadline runs from here, so it must not wait in a queue."""
        room = max(1, math.ceil(_OVERCOMMIT * self.config.generate_config.max_num_seqs / batch.num_samples))
        while batch.waiting and min(self.router.num_sessions(r) for r in self.router.replicas) < room:
            order, prompt = batch.waiting.popleft()
            replica = self.router.route(prompt.id)
            ref = self.workers[replica].run_group.remote(prompt, batch.num_samples, batch.sampling)
            batch.running[ref] = _Job(order, prompt, replica)

    def _group(self, ref: ray.ObjectRef, job: _Job) -> Group:
        group: Group = result(ref, what=f"rollout worker {job.replica}")
        if any(t.stop_reason is StopReason.ENGINE_FAILED for t in group.trajectories):
            name = f"rollout worker {job.replica}"
            raise WorkerDiedError(f"{name}: its engine died. See logs/rollout-{job.replica}.log of the run directory.")
        return group

    def _bury(self, replica: int, error: RolloutError) -> None:
        """Take a dead worker out of the routing."""
        if replica in self.workers:
            del self.workers[replica]
            self.router.remove(replica)
            if self.workers:
                logger.error("%s Its prompts go to the %d workers left.", error, len(self.workers))
        if not self.workers:
            raise RolloutError(f"no rollout worker is left. {error}") from error

    def _end_hung(self, batch: _Batch) -> None:
        """Kill workers that are long past a trajectory's deadline; their prompts then fail over to others."""
        rl, now = self.config.rl_config, time.monotonic()
        deadline = rl.trajectory_timeout + rl.verifier_timeout + _GRACE_S
        for job in list(batch.running.values()):
            if now - job.started > deadline and job.replica in self.workers:
                worker = self.workers[job.replica]
                error = RolloutError(
                    f"rollout worker {job.replica}: prompt {job.prompt.id} has not ended {now - job.started:.0f} s "
                    f"after its start, though rl_config.trajectory_timeout is {rl.trajectory_timeout:.0f} s and "
                    f"verifier_timeout {rl.verifier_timeout:.0f} s. Its engine or a reward hangs; see its log in logs/ "
                    "of the run directory."
                )
                self._bury(job.replica, error)
                ray.kill(worker)

    def _check_tools(self, groups: list[Group]) -> None:
        trajectories = [t for g in groups for t in g.trajectories]
        failed = [t for t in trajectories if t.stop_reason is StopReason.TOOL_UNAVAILABLE]
        share = len(failed) / max(1, len(trajectories))
        if share > self.config.rl_config.max_tool_unavailable_share:
            names = sorted(
                {r.name for t in failed for turn in t.turns for r in turn.results if r.status == "unavailable"}
            )
            raise RolloutError(
                f"tool {', '.join(names)}: its service did not answer in {len(failed)} of {len(trajectories)} "
                "trajectories. Start the service, or check its address in rl_config.tool_config_path."
            )
