"""What a sleeping engine does with requests; vLLM itself sleeps on CUDA only."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rl.errors import RolloutError
from rl.inference.engine import VllmEngine
from rl.types import FinishReason, Sampling, WeightUpdate


class Llm:
    """The calls of `AsyncLLM` that sleep, publish and generate make, in order."""

    errored = False

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            return [None] if name == "collective_rpc" else True

        return call

    async def generate(self, prompt: Any, params: Any, request_id: str) -> Any:
        self.calls.append("generate")
        logprobs = SimpleNamespace(logprobs=[-0.5])
        completion = SimpleNamespace(finish_reason="stop", token_ids=[7], logprobs=logprobs)
        yield SimpleNamespace(outputs=[completion], request_id=request_id)


def make_engine(*, holds_requests: bool) -> tuple[VllmEngine, Llm]:
    llm = Llm()
    engine = VllmEngine(llm, name="engine", stop_token_ids=(), on_cuda=True, holds_requests=holds_requests)
    return engine, llm


async def test_requests_wait_for_the_next_publish_where_rollouts_run_ahead() -> None:
    engine, llm = make_engine(holds_requests=True)
    await engine.sleep()
    assert llm.calls == ["pause_generation", "sleep"]
    request = asyncio.create_task(engine.generate([1], Sampling(1.0, 4), session_id="s"))
    await asyncio.sleep(0.01)
    assert not request.done()
    await engine.update_weights(WeightUpdate(3, ()))
    generation = await asyncio.wait_for(request, 5)
    assert (generation.policy_version, generation.finish_reason) == (3, FinishReason.STOP)
    assert llm.calls.index("generate") > llm.calls.index("resume_generation") > llm.calls.index("wake_up")


async def test_a_request_to_a_sleeping_engine_is_an_error_where_they_do_not() -> None:
    engine, llm = make_engine(holds_requests=False)
    await engine.sleep()
    assert llm.calls == ["sleep"]
    with pytest.raises(RolloutError, match="asleep"):
        await engine.generate([1], Sampling(1.0, 4), session_id="s")
