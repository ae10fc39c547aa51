"""The Ray actors: thin wrappers of `Actor`, `VllmEngine` with its agent loops, and `RewardSet`.

Each imports what it needs in `start`. With imports at the top every process, even the driver and the reward worker,
would import torch, vLLM and Megatron.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from prometheus_client.core import Metric

from rl.batches import Recording, Sample, TrajectoryHeader, Use
from rl.cluster.ranks import Rank
from rl.cluster.rate_limits import RemotePermits
from rl.cluster.rewards import RewardWorkers
from rl.config.schema import Config
from rl.observability.clock import wall_time
from rl.observability.log import setup_logging
from rl.observability.token_records import write_sampled_rows
from rl.observability.trajectories import write_records
from rl.rewards.registry import configured_rewards
from rl.rollout.garbage_collection import collect_seldom
from rl.rollout.group import run_group
from rl.rollout.headers import headers_of, rows_of
from rl.types import BusySeconds, Generation, IntArray, Prompt, Sampling, Scores, Span, Trajectory, WeightUpdate


@ray.remote
class ActorWorker:
    """One rank of the actor or of the reference."""

    def __init__(self, config: Config, *, log_file: Path, **placement: Any) -> None:
        log_to(log_file)
        self.config, self.placement = config, placement

    def start(self) -> None:
        """Join the process group and load the model."""
        from rl.training.loading import actor_class

        self.rank = Rank(actor_class()(self.config, **self.placement), fetch_rows)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of `rl.training.actor.Actor`, after fetching rows from the object store."""
        return self.rank.call(method, *args)

    def shutdown(self) -> None:
        """Leave the process group."""
        self.rank.actor.shutdown()


@ray.remote
class RewardWorker:
    """Scores trajectories and writes them to files."""

    def __init__(self, config: Config, *, log_file: Path) -> None:
        log_to(log_file)
        self.config = config
        self.tokenizer: Any = None
        """Loaded for the first recorded step."""

    def start(self) -> None:
        """Load the reward functions."""
        self.rewards = configured_rewards(self.config.rl_config)

    async def score(self, trajectory: Trajectory) -> Scores:
        """See `rl.rewards.registry.RewardSet`."""
        return await self.rewards.score(trajectory)

    async def write(
        self, path: Path, records: list[Any], uses: dict[str, Use], rows: list[Any], recording: Recording | None
    ) -> str | None:
        """Write groups' trajectories as JSON lines and, with `recording`, their rows as tokens.

        Args:
            path: See `rl.observability.trajectories.write_records`.
            records: A reference to each group's.
            uses: By trajectory id.
            rows: A reference to each group's; empty without `recording`.
            recording: See `rl.observability.token_records.write_sampled_rows`.

        Returns:
            Why the tokens could not be written, if so.
        """
        await asyncio.to_thread(lambda: write_records(path, ray.get(records), uses))
        return None if recording is None else await asyncio.to_thread(self._write_rows, rows, recording)

    def _write_rows(self, rows: list[Any], recording: Recording) -> str | None:
        from rl.chat.pieces import token_pieces
        from rl.rollout.dialog import configured_tokenizer

        if self.tokenizer is None:
            self.tokenizer = configured_tokenizer(self.config)
        groups = (group for source in rows for group in fetch_rows([source]))
        return write_sampled_rows(recording, groups, partial(token_pieces, self.tokenizer))

    async def shutdown(self) -> None:
        """End the processes of the rewards."""
        await asyncio.to_thread(self.rewards.close)


@ray.remote
class RolloutWorker:
    """An engine and the agent loops that share it."""

    def __init__(
        self,
        config: Config,
        *,
        log_file: Path,
        replica: int,
        model_folder: Path,
        socket_folder: Path,
        reward_workers: Sequence[Any],
        tool_overrides: dict[str, dict],
        rate_limits: Any | None = None,
    ) -> None:
        log_to(log_file)
        self.config, self.replica, self.model_folder = config, replica, model_folder
        self.socket_folder = socket_folder
        self.rewards = RewardWorkers(reward_workers)
        self.tool_overrides, self.rate_limits = tool_overrides, rate_limits

    async def start(self) -> None:
        """Check the chat template against the parser and start the engine."""
        from rl.inference.engine import VllmEngine
        from rl.rollout.agent_loop import AgentLoop
        from rl.rollout.dialog import load_dialog
        from rl.serving.agents import Agents

        self.socket_folder.mkdir(parents=True, exist_ok=True)  # the driver made it on its own machine only
        dialog = load_dialog(self.config, tool_overrides=self.tool_overrides)
        self.toolbox = dialog.toolbox
        if self.toolbox is not None and self.rate_limits is not None:
            self.toolbox.share_rate_limits(partial(RemotePermits, self.rate_limits))
        self.engine = await VllmEngine.create(
            self.config,
            model_folder=self.model_folder,
            replica=self.replica,
            seed=self.config.megatron_training.seed,
            stop_token_ids=dialog.renderer.end_of_turn_ids,
        )
        self.agents = await Agents.start(self.config, dialog)
        self.loop = AgentLoop(
            self.engine, dialog.renderer, dialog.toolbox, dialog.parser, self.config, agents=self.agents
        )
        collect_seldom()

    @ray.method(num_returns=3)
    async def run_group(
        self, prompt: Prompt, num_samples: int, sampling: Sampling, keeps_rows: bool
    ) -> tuple[tuple[list[TrajectoryHeader], IntArray], list[Sample], list[Trajectory]]:
        """Run a prompt to a scored group; see `rl.rollout.group.run_group`.

        Returns:
            Three objects: the headers with the group's `prompt_ids`; the rows, empty without `keeps_rows`; the
            trajectories without tokens. The driver fetches only the first.
        """
        group = await run_group(self.loop, prompt, num_samples, sampling, self.rewards.score)
        for trajectory in group.trajectories:
            trajectory.worker = self.replica
        rows = rows_of(group.trajectories)
        records = [trajectory.without_tokens() for trajectory in group.trajectories]
        return headers_of(records, rows), rows if keeps_rows else [], records

    async def generate(self, token_ids: IntArray, sampling: Sampling, session_id: str) -> Generation:
        """See `rl.interfaces.Engine`, for trajectories that another process leads."""
        return await self.engine.generate(token_ids.tolist(), sampling, session_id=session_id)

    async def restart_clocks(self) -> BusySeconds:
        """Seconds since the last call during which the engine had requests, and during which rewards were scoring."""
        return BusySeconds(engine_s=self.engine.busy.restart(), reward_s=self.rewards.busy.restart())

    async def engine_metrics(self) -> list[Metric]:
        """See `rl.inference.engine.VllmEngine.metrics`."""
        return self.engine.metrics()

    async def update_weights(self, update: WeightUpdate) -> Span:
        """See `rl.interfaces.Engine`; returns when it ran."""
        start = wall_time()
        await self.engine.update_weights(update)
        return Span(f"rollout {self.replica}", "update_weights", start, wall_time())

    async def sleep(self) -> None:
        """See `rl.interfaces.Engine`."""
        await self.engine.sleep()

    async def shutdown(self) -> None:
        """End the agents and the engine, and close the tools."""
        if self.agents is not None:
            await self.agents.close()
        await self.engine.shutdown()
        if self.toolbox is not None:
            await self.toolbox.close()


def log_to(log_file: Path) -> None:
    """Redirect the output of this process and its children to a file, and set up logging."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    setup_logging()


def fetch_rows(sources: list[Any]) -> list[Any]:
    """A share's rows. References to the object store are fetched all at once; other rows came with the call."""
    refs = [source for source in sources if isinstance(source, ray.ObjectRef)]
    found = dict(zip(refs, ray.get(refs), strict=True))
    return [found[source] if isinstance(source, ray.ObjectRef) else source for source in sources]
