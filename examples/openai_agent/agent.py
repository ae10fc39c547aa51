"""An agent on the package openai, with a calculator: inside `rl train`, or against a service that trains its model.

python -m rl train --config-name grpo_smollm2_135m_openai_agent
python -m examples.openai_agent.agent --service http://127.0.0.1:7453 --steps 4
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from openai import BadRequestError

from rl.data.prompts import load_prompts
from rl.rewards.answers import boxed_answers, is_same_answer
from rl.serving.client import AgentClient
from rl.tools.calculator import calculator, evaluate
from rl.tools.function_tool import function_schema
from rl.types import Prompt

TOOLS = [function_schema(calculator)]
MOST_TURNS = 4


async def solve(prompt: Prompt, client: AgentClient) -> float:
    """Answer a question in a loop of turns and calls; returns 1 for the right answer, otherwise 0."""
    messages = list(prompt.messages)
    async with client.openai() as openai:
        for _ in range(MOST_TURNS):
            answer = await openai.chat.completions.create(model=client.model, messages=messages, tools=TOOLS)
            message = answer.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                result = compute(call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    text = message.content or ""
    return float(is_same_answer([text, *boxed_answers(text)][-1], prompt.ground_truth))


def compute(arguments: str) -> str:
    """The calculator's answer to a call, also to a wrong one."""
    try:
        return evaluate(json.loads(arguments)["expression"])
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        return f"Error: {type(error).__name__}: {error}"


async def train(address: str, prompts: list[Prompt], steps: int, num_prompts: int, num_samples: int) -> None:
    """Let a service train the model behind the agent: a group of rollouts for each prompt, and a reward for each."""
    async with aiohttp.ClientSession(address, raise_for_status=True) as service:

        async def get_status(step: int) -> dict[str, Any]:
            return await (await service.get("/v1/status", params={"step": step})).json()

        async def play(prompt: Prompt, rollout: dict[str, Any]) -> float:
            try:
                reward = await solve(prompt, AgentClient(rollout["base_url"], rollout["api_key"], rollout["model"]))
            except BadRequestError:  # the token budget is used up
                reward = 0.0
            await service.post(f"/rollouts/{rollout['id']}/reward", json={"reward": reward})
            return reward

        async def play_group(prompt: Prompt) -> list[float]:
            task = {"messages": prompt.messages, "ground_truth": prompt.ground_truth, "n": num_samples}
            group = await (await service.post("/v1/groups", json=task)).json()
            return await asyncio.gather(*(play(prompt, rollout) for rollout in group["rollouts"]))

        first = (await get_status(0))["step"]
        for step in range(first + 1, first + steps + 1):
            chosen = [prompts.pop() for _ in range(num_prompts)]
            rewards = [reward for group in await asyncio.gather(*map(play_group, chosen)) for reward in group]
            while (status := await get_status(step))["step"] < step:  # each request waits for a minute
                if status["failure"]:
                    raise SystemExit(f"{address}: {status['failure']}")
            print(f"step {step}: mean reward {sum(rewards) / len(rewards):.3f}")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the model of a service behind the agent.")
    parser.add_argument("--service", default="http://127.0.0.1:7453")
    parser.add_argument("--prompts", type=Path, default=Path("data/quickstart/train.parquet"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--global-batch-size", type=int, default=8, help="prompts of one step, as the service has it")
    parser.add_argument("--samples", type=int, default=8, help="rollouts of each prompt")
    given = parser.parse_args()
    prompts = load_prompts(given.prompts)
    asyncio.run(train(given.service, prompts, given.steps, given.global_batch_size, given.samples))


if __name__ == "__main__":
    main()
