"""What an agent gets: the address under which the trained model answers its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI, OpenAI


@dataclass(slots=True, frozen=True)
class AgentClient:
    """Access of one trajectory to the model. Works with any client of OpenAI's or Anthropic's API.

    Attributes:
        base_url: The API's address, `http://127.0.0.1:PORT/rollouts/KEY/v1`. It names the trajectory.
        api_key: The trajectory's key.
        model: The model's name.
    """

    base_url: str
    api_key: str
    model: str

    def openai(self) -> AsyncOpenAI:
        """A client of the `openai` package. It repeats no request: that would sample another turn."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0)

    def openai_sync(self) -> OpenAI:
        """The same for agents that are plain functions."""
        from openai import OpenAI

        return OpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0)

    def anthropic(self) -> AsyncAnthropic:
        """A client of the `anthropic` package, for agents on Anthropic's API."""
        from anthropic import AsyncAnthropic

        return AsyncAnthropic(base_url=self.base_url.removesuffix("/v1"), api_key=self.api_key, max_retries=0)
