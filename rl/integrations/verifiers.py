"""Environments of the package verifiers, v0 (`MultiTurnEnv` and what derives from it), as an agent function.

    rl_config:
      agent_function: rl.integrations.verifiers:solve
      agent_function_kwargs: {env_id: wordle}

`python -m rl.integrations.verifiers wordle --output data/wordle` writes the prompts of the environment's datasets.
docs/environments.md tells more.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.config.imports import import_target
from rl.serving.client import AgentClient
from rl.types import Prompt

if TYPE_CHECKING:
    from verifiers import Environment


async def solve(
    prompt: Prompt, client: AgentClient, *, env_id: str, env_args: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Roll out the environment on one prompt and score it with the environment's rubric.

    Args:
        prompt: A row that `write_prompts` wrote.
        client: Access to the model.
        env_id: An installed environment, as `verifiers.load_environment` takes it; or `path/file.py:function` or
            `package.module:function`, which returns one.
        env_args: Its keyword arguments.

    Returns:
        `score`, the rubric's metrics, and `turn_scores` where the environment gives its steps rewards.

    Raises:
        ValueError: The rubric compares the rollouts of a group, which an agent function sees one by one.
        Exception: What the environment raised.
    """
    from verifiers.clients import OpenAIChatCompletionsClient

    environment = load(env_id, json.dumps(env_args or {}, sort_keys=True))
    if environment.requires_group_rollouts:
        raise ValueError(f"{env_id}: its rubric compares the rollouts of a group. Only scores of one rollout work.")
    async with client.openai() as openai:
        state = await environment.rollout(
            _as_input(prompt), OpenAIChatCompletionsClient(openai), client.model, sampling_args={}
        )
    if state["error"] is not None:
        raise state["error"]
    await environment.rubric.score_rollout(state)
    await environment.rubric.cleanup(state)
    rewards = [step["reward"] for step in state["trajectory"]]
    given = {"turn_scores": [reward or 0.0 for reward in rewards]} if any(r is not None for r in rewards) else {}
    return {**state["metrics"], "score": state["reward"], **given}


@functools.cache
def load(env_id: str, env_args: str) -> Environment:
    """Load an environment, once in each process.

    Args:
        env_id: See `solve`.
        env_args: Keyword arguments as JSON.
    """
    import verifiers

    if ":" in env_id:
        return import_target(env_id)(**json.loads(env_args))
    return verifiers.load_environment(env_id, **json.loads(env_args))


def write_prompts(environment: Environment, output: Path, num: int = -1) -> list[Path]:
    """Write the datasets of an environment as prompts for `megatron_training.data_path` and `eval_data_path`.

    Args:
        environment: From `load`.
        output: Folder for `train.parquet` and, where the environment has an evaluation set, `eval.parquet`.
        num: Rows of each at most; -1: all.

    Returns:
        The files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for name, has_dataset, get in (
        ("train", environment.dataset is not None, environment.get_dataset),
        ("eval", environment.eval_dataset is not None, environment.get_eval_dataset),
    ):
        if has_dataset:
            files.append(output / f"{name}.parquet")
            pq.write_table(pa.Table.from_pylist(list(_rows(get(n=num)))), files[-1])
    return files


def _rows(dataset: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows of our data; what verifiers has besides the prompt is the column `row`, as JSON."""
    for row in dataset:
        yield {
            "messages": [{"role": m["role"], "content": m["content"]} for m in row["prompt"]],
            "ground_truth": str(row.get("answer") or ""),
            "data_source": "verifiers",
            "row": json.dumps({name: value for name, value in row.items() if name != "prompt"}),
        }


def _as_input(prompt: Prompt) -> dict[str, Any]:
    """A row as verifiers' input of a rollout."""
    given = {"example_id": 0, "answer": prompt.ground_truth, "info": {}, **json.loads(prompt.extra.get("row", "{}"))}
    return {**given, "prompt": prompt.messages}


def main() -> None:
    """Parse the command line and write the prompts."""
    parser = argparse.ArgumentParser(description="Write the prompts of a verifiers environment.")
    parser.add_argument("env_id")
    parser.add_argument("--env-args", default="{}", help="keyword arguments of the environment, as JSON")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num", type=int, default=-1, help="rows of each file at most")
    given = parser.parse_args()
    for file in write_prompts(load(given.env_id, given.env_args), given.output, given.num):
        print(file)


if __name__ == "__main__":
    main()
