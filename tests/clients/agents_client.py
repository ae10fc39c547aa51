"""Agents of the OpenAI Agents SDK, which speaks the Responses API by default."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from agents import Agent, FunctionTool, ModelSettings, OpenAIProvider, RunConfig, Runner, set_tracing_disabled
from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError
from openai import AsyncOpenAI
from play import DOUBT, MAX_TOKENS, NUM_TURNS, TOOL, main, run_code

ENDS = (MaxTurnsExceeded, ModelBehaviorError)
"""What the SDK raises if the model calls tools in every turn, and if its answer is cut."""
set_tracing_disabled(True)  # traces go to OpenAI


async def invoke(context: Any, arguments: str) -> str:
    return run_code(json.loads(arguments).get("code"))


def agent_of(rollout: dict[str, str], **settings: Any) -> Agent:
    tool = FunctionTool(
        name=TOOL["name"],
        description=TOOL["description"],
        params_json_schema=TOOL["parameters"],
        on_invoke_tool=invoke,
        strict_json_schema=False,
    )
    return Agent(
        name="interpreter",
        model=rollout["model"],
        tools=[tool],
        model_settings=ModelSettings(max_tokens=MAX_TOKENS, **settings),
    )


def run_config(client: AsyncOpenAI) -> RunConfig:
    return RunConfig(model_provider=OpenAIProvider(openai_client=client), tracing_disabled=True)


def client_of(rollout: dict[str, str]) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=rollout["base_url"], api_key=rollout["api_key"], max_retries=0)


async def converse(rollout: dict[str, str], question: str, *, is_streamed: bool = False, **settings: Any) -> None:
    """Two runs of the SDK's own loop; the second goes on from the items of the first."""
    agent, items = agent_of(rollout, **settings), [{"role": "user", "content": question}]
    async with client_of(rollout) as client:
        options: dict[str, Any] = {"run_config": run_config(client), "max_turns": NUM_TURNS}
        for _ in range(2):
            if is_streamed:
                result: Any = Runner.run_streamed(agent, items, **options)
                kinds = [event.type async for event in result.stream_events()]
                assert "raw_response_event" in kinds
            else:
                result = await Runner.run(agent, items, **options)
            items = [*result.to_input_list(), {"role": "user", "content": DOUBT}]


def tool_loop(rollout: dict[str, str], question: str) -> None:
    run(converse(rollout, question))


def streamed(rollout: dict[str, str], question: str) -> None:
    run(converse(rollout, question, is_streamed=True))


def required(rollout: dict[str, str], question: str) -> None:
    run(converse(rollout, question, tool_choice="required"))


def at_once(rollout: dict[str, str], question: str) -> None:
    """Two agents of the SDK in one rollout: two sequences."""

    async def run_all() -> None:
        async with client_of(rollout) as client:
            helpers = [agent_of(rollout).clone(instructions=f"Helper {i}.", tools=[]) for i in range(2)]
            runs = (Runner.run(helper, question, run_config=run_config(client)) for helper in helpers)
            for ended in await asyncio.gather(*runs, return_exceptions=True):
                assert not isinstance(ended, BaseException) or isinstance(ended, ENDS), ended

    run(run_all())


def run(agents: Coroutine[Any, Any, None]) -> None:
    """Run agents to their end; the SDK raises where the model's turns run out, or its tokens."""
    with suppress(*ENDS):
        asyncio.run(agents)


if __name__ == "__main__":
    main("openai-agents", {"tool loop": tool_loop, "streamed": streamed, "at once": at_once, "required": required})
