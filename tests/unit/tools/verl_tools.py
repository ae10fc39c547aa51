"""Tools in verl's form, against the contract of its BaseTool; only the base class is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np


@dataclass
class ToolResponse:
    text: str | None = None
    image: list[Any] | None = None
    video: list[Any] | None = None


class Submit:
    """Keeps the last answer of each trajectory, as verl's Gsm8kTool does."""

    def __init__(self, config: dict, tool_schema: Any) -> None:
        self.config = config
        self.tool_schema = tool_schema or self.get_openai_tool_schema()
        self.name = self.tool_schema.function.name
        assert self.tool_schema.model_dump(exclude_unset=True)["function"]["name"] == self.name
        self._instances: dict[str, dict] = {}

    def get_openai_tool_schema(self) -> Any:
        return self.tool_schema

    async def create(
        self, instance_id: str | None = None, ground_truth: str | None = None, **kwargs: Any
    ) -> tuple[str, ToolResponse]:
        if instance_id is None:
            instance_id = str(uuid4())
        if ground_truth is None:
            ground_truth = kwargs.get("create_kwargs", {}).get("ground_truth")
        self._instances[instance_id] = {"answer": "", "ground_truth": ground_truth, "reward": 0.0}
        return instance_id, ToolResponse()

    async def execute(self, instance_id: str, parameters: dict[str, Any], **kwargs: Any) -> tuple[Any, float, dict]:
        instance = self._instances[instance_id]
        instance["answer"] = parameters["answer"]
        reward = await self.calc_reward(instance_id)
        step_reward = 0.0 if reward > instance["reward"] else self.config["penalty"]
        instance["reward"] = reward
        return (
            ToolResponse(text=f"reward={reward}"),
            step_reward,
            {"length": np.int64(len(parameters["answer"])), "s": "x"},
        )

    async def calc_reward(self, instance_id: str, **kwargs: Any) -> float:
        instance = self._instances[instance_id]
        return float(instance["answer"] == instance["ground_truth"])

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        del self._instances[instance_id]


class Early:
    """The form of verl 0.4: text alone, an instance id alone, keyword arguments by name; its own schema."""

    def __init__(self, config: dict, tool_schema: Any) -> None:
        self._start = 0

    def get_openai_tool_schema(self) -> dict:
        return {"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}

    async def create(self, instance_id: str, start: int) -> str:
        self._start = start
        return instance_id

    async def execute(self, instance_id: str, parameters: dict, step: int = 1) -> str:
        self._start += step
        return str(self._start)

    def release(self, instance_id: str) -> None:
        self._start = 0


class Image(Early):
    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, ToolResponse]:
        return "one", ToolResponse()

    async def execute(self, instance_id: str, parameters: dict, **kwargs: Any) -> tuple[ToolResponse, None, None]:
        if instance_id != "one":
            raise ValueError(instance_id)
        return ToolResponse(text="a cat", image=[b"png"]), None, None


class Broken(Early):
    async def execute(self, instance_id: str, parameters: dict, **kwargs: Any) -> tuple[str, float, dict]:
        raise ValueError("no luck")

    async def create(self, instance_id: str | None = None) -> str:
        return "x"


class Raises(Early):
    def __init__(self, config: dict, tool_schema: Any) -> None:
        raise KeyError("url")


class Unusual(Early):
    async def create(self, trajectory_id: str) -> str:
        return trajectory_id
