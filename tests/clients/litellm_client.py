"""Agents on LiteLLM, which asks the service as an OpenAI server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
from play import DOUBT, MAX_TOKENS, NUM_TURNS, TOOL, main, run_code

TOOLS = [{"type": "function", "function": TOOL}]


def access(rollout: dict[str, str]) -> dict[str, Any]:
    return {
        "model": f"openai/{rollout['model']}",
        "api_base": rollout["base_url"],
        "api_key": rollout["api_key"],
        "max_tokens": MAX_TOKENS,
        "num_retries": 0,
    }


def tool_loop(rollout: dict[str, str], question: str, *, is_streamed: bool = False, **first: Any) -> None:
    """A conversation with calls; `first` goes with the first request alone."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for number in range(NUM_TURNS):
        options = first if number == 0 else {}
        answer: Any = litellm.completion(
            **access(rollout), messages=messages, tools=TOOLS, stream=is_streamed, **options
        )
        if is_streamed:
            answer = litellm.stream_chunk_builder(list(answer), messages=messages)
        message = answer.choices[0].message
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": run_code(json.loads(call.function.arguments)["code"])}
            for call in message.tool_calls or []
        ] or [{"role": "user", "content": DOUBT}]


def streamed(rollout: dict[str, str], question: str) -> None:
    tool_loop(rollout, question, is_streamed=True)


def required(rollout: dict[str, str], question: str) -> None:
    tool_loop(rollout, question, tool_choice="required")


def at_once(rollout: dict[str, str], question: str) -> None:
    """Two sub-agents and two choices at the same time: four sequences."""

    async def ask_all() -> list[Any]:
        user = {"role": "user", "content": question}
        helpers = [[{"role": "system", "content": f"Helper {i}."}, user] for i in range(2)]
        return await asyncio.gather(
            litellm.acompletion(**access(rollout), messages=[user], n=2),
            *(litellm.acompletion(**access(rollout), messages=messages) for messages in helpers),
        )

    answers = asyncio.run(ask_all())
    assert [len(answer.choices) for answer in answers] == [2, 1, 1]


if __name__ == "__main__":
    litellm.suppress_debug_info = True
    main("litellm", {"tool loop": tool_loop, "streamed": streamed, "at once": at_once, "required": required})
