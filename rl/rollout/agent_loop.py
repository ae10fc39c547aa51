"""One trajectory: the policy and an environment take turns, within budgets and a deadline, until a `StopReason`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from rl.chat.ledger import Extension
from rl.chat.parsers import Parser
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.errors import DataError, ModelError, RolloutError
from rl.interfaces import Sampler
from rl.rollout.environment_code import load_environment
from rl.rollout.environments import Step
from rl.rollout.episode import Episode
from rl.rollout.rollout_function import load_rollout_function, run_rollout_function
from rl.rollout.tool_environment import Session, ToolEnvironment
from rl.rollout.user_code import UserCodeError
from rl.types import Message, Prompt, Sampling, StopReason, TokenSequence, Trajectory, Turn

logger = logging.getLogger(__name__)


class Toolbox(Protocol):
    """Where tool sessions come from (`rl.tools.registry.Toolbox`)."""

    def open_session(self, trajectory_id: str, row: Mapping[str, Any] | None = None) -> Session:
        """Begin the tool use of one trajectory."""
        ...


class Agents(Protocol):
    """Runs the user's agent function (`rl.serving.agents.Agents`)."""

    async def run(self, episode: Episode, parser: Parser, tools: ToolEnvironment) -> StopReason:
        """Run one trajectory to its end."""
        ...


class AgentLoop:
    """Runs trajectories, any number at once.

    Args:
        engine: Samples tokens.
        renderer: Built on the engine's tokenizer.
        toolbox: The tools; None without any.
        parser: Reads tool calls out of a turn.
        config: The run's configuration; names the environment or the rollout function.
        on_turn: Called with each turn when it has been generated, and once more when it has been answered.
        agents: Where the configuration names an agent function.

    Raises:
        ConfigError: The environment or the rollout function cannot be found or used.
    """

    def __init__(
        self,
        engine: Sampler,
        renderer: Renderer,
        toolbox: Toolbox | None,
        parser: Parser,
        config: Config,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        agents: Agents | None = None,
    ) -> None:
        assert agents is not None or config.rl_config.agent_function is None, "an agent function needs its processes"
        self._agents = agents
        self._engine = engine
        self._renderer = renderer
        self._toolbox = toolbox
        self._parser = parser
        self._on_turn = on_turn
        self._rl = config.rl_config
        self._max_model_len = config.generate_config.max_model_len
        self._seed = config.megatron_training.seed
        self._environment = load_environment(config.rl_config, renderer.strip_end_of_turn)
        self._function = load_rollout_function(config.rl_config)

    @property
    def _has_actions(self) -> bool:
        """The environment has tools of its own."""
        return self._environment is not None and bool(self._environment.tools)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The engine's tokenizer."""
        return self._renderer.tokenizer

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        """Run one trajectory to its end. A dead engine, a deadline, a broken service or user code is its `StopReason`.

        With context length c and response length r so far (`Trajectory.response_length`), there is room for
        R = min(max_model_len - c, max_total_response_length - r) tokens, without `multi_turn_enable` for
        max_model_len - c. A turn may sample min(R - final_answer_reserve, max_tokens) of them, the final turn
        min(R, max_tokens). A turn is the final one when the environment says so (tools: when `max_tool_calls` calls
        have been given to them; malformed ones count, so turns are bounded), when no more than the reserve is left, or
        when the turn before was cut by length and, there being a reserve, closed by force.

        Args:
            prompt: The dataset row.
            sample_index: Number of the trajectory in its group.
            sampling: `max_tokens` bounds one turn; `seed`, or the run's where it is None, is the base from which each
                request's seed is derived.

        Returns:
            The trajectory, not yet scored.
        """
        start = time.monotonic()
        session = self._toolbox.open_session(f"{prompt.id}/{sample_index}", prompt.extra) if self._toolbox else None
        episode = Episode(
            self._engine,
            self._renderer,
            prompt,
            sample_index,
            sampling if sampling.seed is not None else replace(sampling, seed=self._seed),
            stop=self._parser.stop if session is not None or self._has_actions else (),
            max_context=self._max_model_len,
            max_response=self._rl.max_total_response_length if self._rl.multi_turn_enable else self._max_model_len,
            began_at=start,
        )
        environment = ToolEnvironment(
            session, self._renderer, self._parser, self._rl, self._environment, self._on_turn, began_at=start
        )
        failure = None
        try:
            stop_reason = await self._run_in_time(episode, environment)
        except UserCodeError as error:
            stop_reason, failure = StopReason.ENVIRONMENT_FAILED, str(error)
        finally:
            await environment.close()
        trajectory = episode.finish(stop_reason, time.monotonic() - start)
        trajectory.failure = failure
        return trajectory

    async def _run_in_time(self, episode: Episode, environment: ToolEnvironment) -> StopReason:
        deadline = asyncio.timeout(None if self._rl.in_process else self._rl.trajectory_timeout)
        try:
            async with deadline:
                if self._agents is not None:
                    return await self._agents.run(episode, self._parser, environment)
                if self._function is not None:
                    return await run_rollout_function(self._function, episode, self._parser, environment)
                return await self._run_turns(episode, environment)
        except TimeoutError:
            if not deadline.expired():
                raise
            logger.warning("%s: ended after %g s, at its deadline.", episode.id, self._rl.trajectory_timeout)
            return StopReason.DEADLINE
        except RolloutError as error:
            logger.warning("%s: %s", episode.id, error)
            return StopReason.ENGINE_FAILED

    async def _run_turns(self, episode: Episode, environment: ToolEnvironment) -> StopReason:
        messages = list(await environment.reset(episode.prompt))
        if messages != episode.prompt.messages:
            episode.prompt = replace(episode.prompt, messages=list(messages))
        sequence, _ = episode.ledger.apply(self._plan(episode, messages))
        rewards: list[float | None] = []
        is_last_word = False
        while (room := episode.room(sequence)) > 0:
            is_last = is_last_word or environment.is_last_turn or room <= self._rl.final_answer_reserve
            turn = await episode.generate(sequence, room - (0 if is_last else self._rl.final_answer_reserve))
            turn.is_last = is_last
            messages.append(episode.said(turn))
            episode.ledger.record(sequence, messages[-1])
            step = await environment.step(turn)
            rewards.append(step.reward)
            self._give(episode, rewards, step)
            is_last_word = turn.is_cut and not step.messages
            stop_reason = self._stop_reason(turn, step, is_last_word=is_last_word)
            following = None if stop_reason is not None else self._append(episode, environment, messages, step)
            if turn.results or turn.messages:
                self._on_turn(turn)
            if following is None:
                return stop_reason or StopReason.LENGTH
            sequence = following
        return StopReason.LENGTH

    def _stop_reason(self, turn: Turn, step: Step, *, is_last_word: bool) -> StopReason | None:
        """Why a trajectory ends with a turn; None: it goes on if there is room."""
        if step.stop_reason is not None:
            return step.stop_reason
        if step.done:
            return StopReason.LENGTH if turn.is_cut else StopReason.FINISHED
        if turn.is_last or (is_last_word and self._rl.final_answer_reserve == 0):
            return StopReason.LENGTH
        return None

    def _append(
        self, episode: Episode, environment: ToolEnvironment, messages: list[Message], step: Step
    ) -> TokenSequence | None:
        """Append the environment's messages; results of tools are cut so that the final answer keeps its reserve.

        What the template adds around them may use up the reserve. Without messages, another turn is opened: for the
        final answer if the turn before ran into the reserve.

        Returns:
            The sequence of the next turn; None where not even one token would be left for it.
        """
        added = list(step.messages)
        while True:
            extension = self._plan(episode, [*messages, *added])
            room = episode.room_behind(extension.context_length, episode.ledger.response_length + extension.num_added)
            excess = max(self._rl.final_answer_reserve, 1) - room
            shorter = environment.shorten(excess) if excess > 0 else None
            if shorter is None:
                break
            added = shorter
        if room <= 0:
            return None
        messages += added
        return episode.ledger.apply(extension)[0]

    def _plan(self, episode: Episode, messages: list[Message]) -> Extension:
        try:
            return episode.ledger.plan(messages)
        except (DataError, ModelError) as error:
            if self._environment is None:
                raise
            raise self._environment.failure(str(error)) from error

    def _give(self, episode: Episode, rewards: list[float | None], step: Step) -> None:
        """Keep the rewards of a user's environment. Without any they count as 0 where limits end the trajectory."""
        is_ended_by_limits = not step.done
        if self._environment is not None and (is_ended_by_limits or any(reward is not None for reward in rewards)):
            turn_scores = [reward or 0.0 for reward in rewards]
            episode.given = {"score": sum(turn_scores), "turn_scores": turn_scores}
        else:
            episode.given = None
