"""Agents on the `anthropic` package."""

from __future__ import annotations

import asyncio
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from play import DOUBT, MAX_TOKENS, NUM_TURNS, TOOL, main, run_code

TOOLS = [{"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}]


def access(rollout: dict[str, str]) -> dict[str, Any]:
    """Arguments of a client: its addresses have /v1 in them."""
    return {"base_url": rollout["base_url"].removesuffix("/v1"), "api_key": rollout["api_key"], "max_retries": 0}


def tool_loop(rollout: dict[str, str], question: str, *, is_streamed: bool = False, **first: Any) -> None:
    """A conversation with calls; `first` goes with the first request alone."""
    messages: list[Any] = [{"role": "user", "content": question}]
    with Anthropic(**access(rollout)) as client:
        for number in range(NUM_TURNS):
            request: dict[str, Any] = {
                "model": rollout["model"],
                "messages": messages,
                "tools": TOOLS,
                "max_tokens": MAX_TOKENS,
                **(first if number == 0 else {}),
            }
            if is_streamed:
                with client.messages.stream(**request) as stream:
                    pieces = "".join(stream.text_stream)
                    answer = stream.get_final_message()
                assert pieces == text_of(answer)
            else:
                answer = client.messages.create(**request)
            messages.append({"role": "assistant", "content": answer.content or [{"type": "text", "text": ""}]})
            messages.append({"role": "user", "content": results_of(answer) or DOUBT})


def streamed(rollout: dict[str, str], question: str) -> None:
    tool_loop(rollout, question, is_streamed=True)


def required(rollout: dict[str, str], question: str) -> None:
    tool_loop(rollout, question, tool_choice={"type": "any"})


def at_once(rollout: dict[str, str], question: str) -> None:
    """Three sub-agents, two of them with the same request: three sequences."""

    async def ask_all() -> list[Any]:
        async with AsyncAnthropic(**access(rollout)) as client:
            return await asyncio.gather(
                *(
                    client.messages.create(
                        model=rollout["model"],
                        system=f"Helper {i}.",
                        messages=[{"role": "user", "content": question}],
                        max_tokens=MAX_TOKENS,
                    )
                    for i in (0, 1, 1)
                )
            )

    asyncio.run(ask_all())


def results_of(answer: Any) -> list[dict[str, Any]]:
    return [
        {"type": "tool_result", "tool_use_id": block.id, "content": run_code(block.input.get("code"))}
        for block in answer.content
        if block.type == "tool_use"
    ]


def text_of(answer: Any) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


if __name__ == "__main__":
    main("anthropic", {"tool loop": tool_loop, "streamed": streamed, "at once": at_once, "required": required})
