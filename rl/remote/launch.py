"""Rollouts of an evaluation through an OpenAI-compatible server: no engine, no tokenizer, no Ray."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from rl.batches import GroupHeader
from rl.cluster.embedded_services import embedded_services
from rl.cluster.endings import terminated_like_interrupted
from rl.cluster.rollouts import RolloutGroup
from rl.config.schema import Config
from rl.errors import RolloutError
from rl.remote.client import ChatClient, Endpoint
from rl.remote.loop import EndpointLoop
from rl.rewards.registry import configured_rewards
from rl.rollout.loop_workers import LoopWorkers
from rl.rollout.workers import PromptBatch
from rl.tools.registry import load_toolbox
from rl.types import Prompt, Span, StopReason, WeightUpdate

logger = logging.getLogger(__name__)

_CHECK_TIMEOUT_S = 15.0
_SILENT = (StopReason.ENGINE_FAILED, StopReason.DEADLINE)
"""With one of these and without a turn, the server never answered a trajectory."""


class EndpointWorkers(LoopWorkers):
    """One rollout worker in this process (`rl.rollout.workers.Workers`). The engine is the server's."""

    def run(self, batch: PromptBatch) -> Generator[tuple[int, GroupHeader], None, None]:
        """See `Workers`.

        Raises:
            RolloutError: The server failed in every trajectory.
        """
        failure, has_answered = None, False
        with closing(super().run(batch)) as groups:
            for order, group in groups:
                silent = [t for t in group.trajectories if t.stop_reason in _SILENT and not t.turn_tokens]
                has_answered = has_answered or len(silent) < len(group.trajectories)
                failure = failure or (silent[0].failure if silent else None)
                yield order, group
        if failure is not None and not has_answered:
            raise RolloutError(f"--endpoint: no trajectory got an answer. The first: {failure}. See the server's log.")

    def call(self, method: str, *, what: str) -> list[Any]:
        """See `Workers`; there is nothing to call."""
        return []

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """See `Workers`; the engine's metrics are the server's."""
        return {}

    def update_weights(self, update: WeightUpdate) -> list[Span]:
        """See `Workers`; the weights are the server's."""
        raise AssertionError("a server takes no weights")


@contextmanager
def connect(
    config: Config,
    endpoint: Endpoint,
    prompts: list[Prompt],
    *,
    on_group: Callable[[int, int], None] = lambda done, wanted: None,
) -> Iterator[RolloutGroup]:
    """Connect to a server, and start the tools and rewards of an evaluation.

    Args:
        config: A validated configuration. `generate_config.max_num_seqs` limits the requests at once,
            `rl_config.trajectory_timeout` the time of a trajectory.
        endpoint: The server and the model.
        prompts: The evaluation prompts.
        on_group: See `RolloutGroup`.
    """
    rl, num_at_once = config.rl_config, config.generate_config.max_num_seqs
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        overrides = stack.enter_context(embedded_services(config))
        runner = stack.enter_context(asyncio.Runner())
        toolbox = None
        if rl.multi_turn_enable and rl.tool_config_path:
            toolbox = load_toolbox(Path(rl.tool_config_path), overrides=overrides)
            stack.callback(lambda: runner.run(toolbox.close()))
        rewards = configured_rewards(rl)
        stack.callback(rewards.close)
        # twice, because aiohttp would swallow the deadline of a trajectory that ends at the same time as an attempt
        client = ChatClient(endpoint, timeout_s=2 * rl.trajectory_timeout, num_at_once=num_at_once)
        stack.callback(lambda: runner.run(client.close()))
        loop = EndpointLoop(client, toolbox, config)
        workers = EndpointWorkers(loop, rewards, runner.get_loop(), lambda samples: math.ceil(num_at_once / samples))
        yield RolloutGroup(workers, prompts, config, on_group=on_group)
        if client.num_failed_attempts:
            logger.warning("--endpoint: %d attempts failed and were tried again.", client.num_failed_attempts)


def check_endpoint(endpoint: Endpoint) -> None:
    """Check that a server answers and knows the model.

    Raises:
        ConfigError: Wrong address, key or model.
        ServiceError: The server does not answer, or fails.
    """

    async def check() -> None:
        client = ChatClient(endpoint, timeout_s=_CHECK_TIMEOUT_S, num_at_once=1)
        try:
            await client.check()
        finally:
            await client.close()

    asyncio.run(check())
