"""The driver's side of the rollout: hands prompts to workers, collects scored groups, survives a worker's death."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from rl.algorithms.filters import drop_uninformative_groups
from rl.cluster.health import WorkerDiedError, get_all, result
from rl.config.schema import Config
from rl.data.prompts import PromptCursor
from rl.errors import RolloutError
from rl.inference.router import Router
from rl.types import Group, Prompt, Sampling, StopReason, WeightUpdate

logger = logging.getLogger(__name__)

_GRACE_S = 120.0
"""Seconds beyond a trajectory's own deadline before its worker counts as hung."""
_PUBLISH_TIMEOUT_S = 600.0


@dataclass(slots=True)
class _Job:
    """One prompt on one worker."""

    order: int
    prompt: Prompt
    replica: int
    started: float = field(default_factory=time.monotonic)


class RolloutGroup:
    """All rollout workers.

    Args:
        workers: Handles by replica number; engines already started.
        prompts: The training prompts, those too long already dropped.
        config: The run's configuration.
        sleep_between: Engines give up their accelerator's memory between `take` and the next publish.
        on_group: Called with (groups done, groups wanted) as they finish, for the progress bar.
    """

    def __init__(
        self,
        workers: list[Any],
        prompts: list[Prompt],
        config: Config,
        *,
        sleep_between: bool = False,
        on_group: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> None:
        self.workers = dict(enumerate(workers))
        self.router = Router(list(self.workers))
        self.prompts, self.config, self.sleep_between, self.on_group = prompts, config, sleep_between, on_group
        self.cursor = PromptCursor(len(prompts), config.megatron_training.seed)
        self.update_ref: WeightUpdate | None = None

    def take(self, num_prompts: int) -> list[Group]:
        """Run the next prompts to scored groups; see `rl.interfaces.Rollouts`.

        With `filter_groups_enable` each group whose trajectories all score the same is replaced by a new prompt as
        soon as it is known, up to `filter_groups_max_batches` times `num_prompts` prompts. The uninformative groups
        are returned too: they count in the metrics, and `make_samples` drops them.
        """
        rl, sampling = self.config.rl_config, self._training_sampling()
        limit = num_prompts
        if rl.filter_groups_enable:
            limit = (
                rl.filter_groups_max_batches * num_prompts if rl.filter_groups_max_batches > 0 else len(self.prompts)
            )
        num_informative = 0
        finished: list[tuple[int, Group]] = []
        queue = self._next_prompts(num_prompts)
        num_started = num_prompts
        jobs: dict[ray.ObjectRef, _Job] = {}
        self._start(jobs, list(enumerate(queue)), rl.n_samples_per_prompt, sampling)
        while jobs:
            for order, group in self._finished(jobs, rl.n_samples_per_prompt, sampling):
                finished.append((order, group))
                informative = not rl.filter_groups_enable or self._is_informative(group)
                num_informative += informative
                self.on_group(num_informative, num_prompts)
                if not informative and num_started < limit:
                    self._start(jobs, [(num_started, self._next_prompts(1)[0])], rl.n_samples_per_prompt, sampling)
                    num_started += 1
        if num_informative < num_prompts:
            logger.warning(
                "rl_config.filter_groups_max_batches: only %d of %d groups have differing scores after %d prompts; "
                "training on those.", num_informative, num_prompts, num_started,
            )  # fmt: skip
        groups = [group for _, group in sorted(finished, key=lambda pair: pair[0])]
        self._check_tools(groups)
        if self.sleep_between:
            self._call("sleep", what="putting the engines to sleep", timeout_s=_PUBLISH_TIMEOUT_S)
        return groups

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[Group]:
        """Run given prompts; see `rl.interfaces.Rollouts`."""
        jobs: dict[ray.ObjectRef, _Job] = {}
        finished: list[tuple[int, Group]] = []
        self._start(jobs, list(enumerate(prompts)), num_samples, sampling)
        while jobs:
            for done in self._finished(jobs, num_samples, sampling):
                finished.append(done)
                self.on_group(len(finished), len(prompts))
        return [group for _, group in sorted(finished, key=lambda pair: pair[0])]

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine."""
        if self.sleep_between and self.update_ref is not None:
            self._call("wake_up", what="waking the engines", timeout_s=_PUBLISH_TIMEOUT_S)
        self._call("update_weights", update, what="loading published weights", timeout_s=_PUBLISH_TIMEOUT_S)
        self.update_ref = update

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the place in the data."""
        return {"cursor": self.cursor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the place in the data that a checkpoint kept."""
        self.cursor.load_state_dict(state["cursor"])

    def _is_informative(self, group: Group) -> bool:
        return drop_uninformative_groups([group], self.config.rl_config.filter_groups_metric)[1] == 0

    def _next_prompts(self, count: int) -> list[Prompt]:
        return [self.prompts[i] for i in self.cursor.take(count)]

    def _training_sampling(self) -> Sampling:
        s = self.config.generate_config.sampling_config
        return Sampling(
            temperature=s.temperature, max_tokens=s.max_tokens, top_p=s.top_p, top_k=s.top_k, min_p=s.min_p,
            seed=self.config.megatron_training.seed,
        )  # fmt: skip

    def _call(self, method: str, *args: Any, what: str, timeout_s: float) -> None:
        get_all([getattr(w, method).remote(*args) for w in self.workers.values()], what=what, timeout_s=timeout_s)

    def _start(
        self, jobs: dict[ray.ObjectRef, _Job], prompts: list[tuple[int, Prompt]], num_samples: int, sampling: Sampling
    ) -> None:
        for order, prompt in prompts:
            replica = self.router.route(prompt.id)
            ref = self.workers[replica].run_group.remote(prompt, num_samples, sampling)
            jobs[ref] = _Job(order, prompt, replica)

    def _finished(
        self, jobs: dict[ray.ObjectRef, _Job], num_samples: int, sampling: Sampling
    ) -> Iterator[tuple[int, Group]]:
        """Yield what has ended since the last call; send the prompts of a dead worker to another."""
        done, _ = ray.wait(list(jobs), num_returns=1, timeout=1.0)
        for ref in done:
            job = jobs.pop(ref)
            try:
                group: Group = result(ref, what=f"rollout worker {job.replica}")
                if any(t.stop_reason is StopReason.ENGINE_FAILED for t in group.trajectories):
                    raise WorkerDiedError(
                        f"rollout worker {job.replica}: its engine died. See logs/ of the run directory."
                    )
            except WorkerDiedError as error:
                self._bury(job.replica, error)
                self._start(jobs, [(job.order, job.prompt)], num_samples, sampling)
                continue
            self.router.release(job.prompt.id)
            yield job.order, group
        self._check_deadlines(jobs)

    def _bury(self, replica: int, error: RolloutError) -> None:
        """Take a dead worker out of the routing."""
        if replica in self.workers:
            del self.workers[replica]
            self.router.remove(replica)
            logger.error("%s Its prompts go to the %d workers left.", error, len(self.workers))
        if not self.workers:
            raise RolloutError(f"no rollout worker is left. {error}") from error

    def _check_deadlines(self, jobs: dict[ray.ObjectRef, _Job]) -> None:
        deadline = self.config.rl_config.trajectory_timeout + _GRACE_S
        now = time.monotonic()
        for job in jobs.values():
            if now - job.started > deadline + self.config.rl_config.verifier_timeout:
                raise RolloutError(
                    f"rollout worker {job.replica}: prompt {job.prompt.id} has not ended {now - job.started:.0f} s "
                    f"after its start, though rl_config.trajectory_timeout is "
                    f"{self.config.rl_config.trajectory_timeout:.0f} s. Its engine hangs; see the run directory's log."
                )

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
