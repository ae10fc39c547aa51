"""A whole run in one process: actor, reference, engine, agent loops, tools and rewards, for breakpoints and tests."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client.core import Metric

from rl.batches import GroupHeader, Recording
from rl.chat.pieces import token_pieces
from rl.cluster.actors import ActorGroup
from rl.cluster.cluster import Cluster
from rl.cluster.endings import SHARED_MEMORY
from rl.cluster.ranks import LocalRanks
from rl.cluster.rollouts import RolloutGroup
from rl.cluster.turns import Turns
from rl.config.device import runs_on_cuda
from rl.config.schema import Config
from rl.errors import RolloutError
from rl.inference.environment import engine_environment
from rl.observability.busy_clock import BusyClock
from rl.observability.clock import wall_time
from rl.observability.token_records import write_sampled_rows
from rl.rewards.registry import RewardSet, configured_rewards
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import load_dialog
from rl.rollout.loop_workers import LoopWorkers
from rl.rollout.workers import PromptBatch, groups_at_once
from rl.services.owned_folder import owned_folder
from rl.serving.agents import Agents
from rl.types import BusySeconds, Prompt, Scores, Span, StopReason, Trajectory, WeightUpdate

if TYPE_CHECKING:  # imported when the environment that vLLM reads is set
    from rl.inference.engine import VllmEngine

logger = logging.getLogger(__name__)

_FOLDER = "turnwise-run-"


class LocalWorkers(LoopWorkers):
    """One rollout worker in this process (`rl.rollout.workers.Workers`), with an engine.

    Args:
        engine: Started on `events`.
        loop: Runs trajectories on the engine.
        rewards: Score them.
        config: The run's.
        events: The event loop that runs everything while the driver waits.
    """

    def __init__(
        self,
        engine: VllmEngine,
        loop: AgentLoop,
        rewards: RewardSet,
        config: Config,
        events: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop, rewards, events, partial(groups_at_once, config))
        self._engine, self._tokenizer = engine, loop.tokenizer
        self._scoring = BusyClock()

    def run(self, batch: PromptBatch) -> Generator[tuple[int, GroupHeader], None, None]:
        """See `Workers`."""
        with closing(super().run(batch)) as groups:
            for order, group in groups:
                if any(t.stop_reason is StopReason.ENGINE_FAILED for t in group.trajectories):
                    raise RolloutError("rollout: the engine died. Its own messages are above.")
                yield order, group

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """See `Workers`."""
        return {0: self._engine.metrics()}

    def call(self, method: str, *, what: str) -> list[Any]:
        """See `Workers`."""
        if method == "restart_clocks":
            return [BusySeconds(engine_s=self._engine.busy.restart(), reward_s=self._scoring.restart())]
        assert method == "sleep", f"no such call of a rollout worker: {method}"
        return [self._wait(self._engine.sleep())]

    def update_weights(self, update: WeightUpdate) -> list[Span]:
        """See `Workers`."""
        start = wall_time()
        self._wait(self._engine.update_weights(update))
        return [Span("rollout 0", "update_weights", start, wall_time())]

    def write(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """See `Workers`; here the files are written when the call returns."""
        super().write(path, groups)
        if recording is not None:
            pieces = partial(token_pieces, self._tokenizer)
            failure = write_sampled_rows(recording, (group.rows for group in groups), pieces)
            if failure is not None:
                logger.warning("%s", failure)

    async def _score(self, trajectory: Trajectory) -> Scores:
        with self._scoring:
            return await super()._score(trajectory)


@contextmanager
def launch_locally(
    config: Config,
    prompts: list[Prompt] | None,
    loss: Literal["policy", "sft"] | None,
    model_folder: Path,
    tool_overrides: dict[str, dict],
    *,
    on_group: Callable[[int, int], None],
) -> Iterator[Cluster]:
    """Start a run in this process: one rank of the actor and one engine. Only vLLM starts processes.

    Args:
        config: A validated configuration.
        prompts: Training prompts; None starts no rollout.
        loss: The actor's loss; None starts no actor.
        model_folder: Model that the engine loads.
        tool_overrides: Settings of embedded services.
        on_group: See `RolloutGroup`.
    """
    with ExitStack() as stack:
        shards = stack.enter_context(owned_folder(_FOLDER, SHARED_MEMORY))
        sockets = stack.enter_context(owned_folder(_FOLDER, Path("/tmp")))
        rollouts = actor = None
        if prompts is not None:
            cores = tuple(sorted(os.sched_getaffinity(0)))
            os.environ.update(engine_environment(config, cores, sockets) | {"VLLM_LOGGING_LEVEL": "ERROR"})
            workers = stack.enter_context(_local_workers(config, model_folder, tool_overrides))
            rollouts = RolloutGroup(workers, prompts, config, on_group=on_group)
        takes_turns = runs_on_cuda(config) and rollouts is not None and loss is not None
        if rollouts is not None and takes_turns:
            rollouts.leave_devices()
        if loss is not None:
            actor = stack.enter_context(_local_actor(config, shards, loss))
        if rollouts is not None and actor is not None and takes_turns:
            actor.turns = rollouts.turns = Turns(actor)
        yield Cluster(actor, rollouts)


@contextmanager
def _local_workers(config: Config, model_folder: Path, tool_overrides: dict[str, dict]) -> Iterator[LocalWorkers]:
    from rl.inference.engine import VllmEngine

    dialog = load_dialog(config, tool_overrides=tool_overrides)
    rewards = configured_rewards(config.rl_config)
    with asyncio.Runner() as runner, ExitStack() as stack:
        stack.callback(rewards.close)
        if (toolbox := dialog.toolbox) is not None:
            toolbox.run_in_caller()
            stack.callback(lambda: runner.run(toolbox.close()))
        engine = runner.run(
            VllmEngine.create(
                config,
                model_folder=model_folder,
                replica=0,
                seed=config.megatron_training.seed,
                stop_token_ids=dialog.renderer.end_of_turn_ids,
            )
        )
        stack.callback(lambda: runner.run(engine.shutdown()))
        stack.callback(logging.getLogger("vllm").setLevel, logging.CRITICAL)  # vLLM reports its shutdown as a failure
        if (agents := runner.run(Agents.start(config, dialog))) is not None:
            stack.callback(lambda: runner.run(agents.close()))
        loop = AgentLoop(engine, dialog.renderer, dialog.toolbox, dialog.parser, config, agents=agents)
        yield LocalWorkers(engine, loop, rewards, config, runner.get_loop())


@contextmanager
def _local_actor(config: Config, shards: Path, loss: Literal["policy", "sft"]) -> Iterator[ActorGroup]:
    from rl.training.loading import actor_class

    make = partial(actor_class(), config, num_threads=len(os.sched_getaffinity(0)))
    with make(loss=loss) as actor, ExitStack() as stack:
        references = None
        if loss == "policy" and config.rl_config.init_kl_coef > 0:
            references = LocalRanks([stack.enter_context(make(loss="reference", parallel=actor.parallel))])
        yield ActorGroup(LocalRanks([actor]), references, config, shards, nodes=["here"])
