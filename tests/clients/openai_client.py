"""Agents on the `openai` package: chat completions, streamed, at once, and the Responses API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI
from play import DOUBT, MAX_TOKENS, NUM_TURNS, TOOL, main, run_code

TOOLS = [{"type": "function", "function": TOOL}]


def client_of(rollout: dict[str, str]) -> OpenAI:
    return OpenAI(base_url=rollout["base_url"], api_key=rollout["api_key"], max_retries=0)


def tool_loop(rollout: dict[str, str], question: str, **first: Any) -> None:
    """A conversation with calls; `first` goes with the first request alone."""
    messages: list[Any] = [{"role": "user", "content": question}]
    with client_of(rollout) as client:
        for number in range(NUM_TURNS):
            answer = client.chat.completions.create(
                model=rollout["model"],
                messages=messages,
                tools=TOOLS,
                max_tokens=MAX_TOKENS,
                **(first if number == 0 else {}),
            )
            message = answer.choices[0].message
            messages.append(message)
            calls = message.tool_calls or []
            messages += [tool_message(call.id, call.function.arguments) for call in calls] or [user_message()]


def required(rollout: dict[str, str], question: str) -> None:
    tool_loop(rollout, question, tool_choice="required")


def streamed(rollout: dict[str, str], question: str) -> None:
    messages: list[Any] = [{"role": "user", "content": question}]
    with client_of(rollout) as client:
        for _ in range(NUM_TURNS):
            chunks = client.chat.completions.create(
                model=rollout["model"],
                messages=messages,
                tools=TOOLS,
                max_tokens=MAX_TOKENS,
                stream=True,
                stream_options={"include_usage": True},
            )
            content, calls = collect(chunks)
            message: dict[str, Any] = {"role": "assistant", "content": content}
            messages.append({**message, "tool_calls": calls} if calls else message)
            messages += [tool_message(c["id"], c["function"]["arguments"]) for c in calls] or [user_message()]


def collect(chunks: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text and the calls of a stream."""
    content, usage = "", None
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                if part.index == len(calls):
                    function = {"name": part.function.name, "arguments": ""}
                    calls.append({"id": part.id, "type": "function", "function": function})
                calls[part.index]["function"]["arguments"] += part.function.arguments or ""
    assert usage is not None and usage.completion_tokens > 0
    return content, calls


def at_once(rollout: dict[str, str], question: str) -> None:
    """Two sub-agents and two choices at the same time; then one of the choices goes on. Four sequences."""

    def ask(messages: list[Any], n: int = 1) -> Any:
        return client.chat.completions.create(model=rollout["model"], messages=messages, n=n, max_tokens=MAX_TOKENS)

    user = {"role": "user", "content": question}
    with client_of(rollout) as client, ThreadPoolExecutor(3) as threads:
        helpers = [threads.submit(ask, [{"role": "system", "content": f"Helper {i}."}, user]) for i in range(2)]
        choices = ask([user], n=2).choices
        ask([user, choices[1].message, user_message()])
        for helper in helpers:
            helper.result()
    assert len(choices) == 2


def responses(rollout: dict[str, str], question: str) -> None:
    items: list[Any] = [{"role": "user", "content": question}]
    with client_of(rollout) as client:
        for _ in range(NUM_TURNS):
            answer = client.responses.create(
                model=rollout["model"],
                input=items,
                tools=[{"type": "function", **TOOL}],
                max_output_tokens=MAX_TOKENS,
                store=False,
            )
            items += answer.output
            calls = [item for item in answer.output if item.type == "function_call"]
            items += [
                {"type": "function_call_output", "call_id": c.call_id, "output": run_code(code_of(c.arguments))}
                for c in calls
            ] or [user_message()]


def tool_message(call_id: str, arguments: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call_id, "content": run_code(code_of(arguments))}


def user_message() -> dict[str, str]:
    return {"role": "user", "content": DOUBT}


def code_of(arguments: str) -> Any:
    return json.loads(arguments).get("code")


if __name__ == "__main__":
    ways = {
        "tool loop": tool_loop,
        "streamed": streamed,
        "at once": at_once,
        "responses": responses,
        "required": required,
    }
    main("openai", ways)
