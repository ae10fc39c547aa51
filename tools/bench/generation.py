"""Generation in the multi-turn loop against the bare engine, on the same requests, alternating in one process."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

from rl.config.load import load_config
from rl.config.schema import Config
from rl.data.prompts import load_prompts
from rl.inference.engine import VllmEngine
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import load_dialog
from rl.types import Generation, Sampling, ToolCall, ToolResult, ToolStatus
from tools.bench.figures import Figure, write_json

_ROUNDS = 3
_GOAL = 0.85


class _Recorder:
    """Forwards requests to the engine and records them."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.requests: list[tuple[list[int], Sampling, str]] = []

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        generation = await self.engine.generate(token_ids, sampling, session_id=session_id)
        exact = replace(sampling, max_tokens=len(generation.token_ids))
        self.requests.append((token_ids, exact, session_id))
        return generation


class _InstantTools:
    """Tools that answer immediately, so that only the loop's own work is measured."""

    def open_session(self, trajectory_id: str) -> _InstantTools:
        return self

    async def execute(self, call: ToolCall) -> ToolResult:
        return ToolResult(call.name, "42\n", ToolStatus.OK)

    async def close(self) -> None:
        """Nothing to close."""


class _CallAlways:
    """Finds a call in every turn, so that every trajectory has two turns, whatever the model says."""

    stop: tuple[str, ...] = ()

    def parse(self, text: str) -> list[ToolCall]:
        return [ToolCall("code_interpreter", {"code": "print(42)"})]

    def render(self, call: ToolCall) -> str:
        return ""


async def measure(config: Config) -> list[Figure]:
    """Tokens per second of the loop over those of the engine alone.

    The loop runs `global_batch_size` x `n_samples_per_prompt` trajectories of two turns. The bare engine then gets the
    same requests (ids, seeds and lengths), a trajectory's second one after its first.
    """
    dialog = load_dialog(
        config, tool_overrides={"code_interpreter": {"sandbox_fusion_url": "http://127.0.0.1:9/run_code"}}
    )
    training, sampling = config.megatron_training, config.generate_config.sampling_config
    prompts = load_prompts(Path(training.data_path))[: training.global_batch_size]
    engine = await VllmEngine.create(
        config,
        model_folder=Path(config.actor_config.load),
        replica=0,
        seed=training.seed,
        stop_token_ids=dialog.renderer.end_of_turn_ids,
    )
    ratios, loops, bares = [], [], []
    try:
        for number in range(_ROUNDS + 1):  # the first warms up
            recorder = _Recorder(engine)
            loop = AgentLoop(recorder, dialog.renderer, _InstantTools(), _CallAlways(), config)  # type: ignore[arg-type]
            settings = Sampling(sampling.temperature, sampling.max_tokens, seed=number)
            jobs = [(p, k) for p in prompts for k in range(config.rl_config.n_samples_per_prompt)]
            start = time.perf_counter()
            await asyncio.gather(*(loop.run(p, k, settings) for p, k in jobs))
            loop_s = time.perf_counter() - start
            num_tokens = sum(exact.max_tokens for _, exact, _ in recorder.requests)
            bare_s = await _replay(engine, recorder.requests)
            if number:
                loops.append(num_tokens / loop_s)
                bares.append(num_tokens / bare_s)
                ratios.append(bare_s / loop_s)
    finally:
        await engine.shutdown()
    middle = sorted(range(_ROUNDS), key=ratios.__getitem__)[_ROUNDS // 2]
    detail = f"{loops[middle]:.0f} against {bares[middle]:.0f} tokens/s, {len(jobs)} trajectories of two turns"
    return [
        Figure("multi-turn loop / bare engine", ratios[middle], "", _GOAL, detail=detail),
        Figure("bare engine", bares[middle], "tokens/s"),
    ]


async def _replay(engine: VllmEngine, requests: list[tuple[list[int], Sampling, str]]) -> float:
    sessions: dict[str, list[tuple[list[int], Sampling]]] = {}
    for token_ids, sampling, session_id in requests:
        sessions.setdefault(session_id, []).append((token_ids, sampling))

    async def one(session_id: str, turns: list[tuple[list[int], Sampling]]) -> None:
        for token_ids, sampling in turns:
            await engine.generate(token_ids, sampling, session_id=session_id)

    start = time.perf_counter()
    await asyncio.gather(*(one(name, turns) for name, turns in sessions.items()))
    return time.perf_counter() - start


if __name__ == "__main__":
    name, output, *overrides = sys.argv[1:]
    write_json(asyncio.run(measure(load_config(name, overrides))), Path(output))
