"""Requests to an OpenAI-compatible server, with retries."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential

from rl.errors import ConfigError, ServiceError, unknown_name
from rl.tools.base import ServiceUnavailableError
from rl.tools.service import ServiceClient
from rl.types import Message, Sampling

logger = logging.getLogger(__name__)

_RETRY_FOR_S = 60.0
"""Seconds after which a request that keeps failing is given up."""
_RETRY_FIRST_S, _RETRY_LONGEST_S = 0.5, 10.0


@dataclass(slots=True, frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server."""

    url: str
    """Address of the API, such as `http://localhost:8000/v1`."""
    model: str
    api_key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"


@dataclass(slots=True, frozen=True)
class Completion:
    """One answer of the server."""

    message: dict[str, Any]
    """The assistant's message: `content`, and where there are any `reasoning_content` and `tool_calls`."""
    is_cut: bool
    """The token limit ended it."""
    prompt_tokens: int
    """0 if the server does not count."""
    num_tokens: int
    """Tokens that the model sampled; 0 if the server does not count."""


class RefusedError(Exception):
    """The server refused a request (4xx). A retry cannot help."""


class ChatClient:
    """Chat completions of one endpoint. To be used within one event loop.

    Args:
        endpoint: The server and the model.
        timeout_s: Time limit of one attempt, seconds.
        num_at_once: Requests at the same time.
        retry_for_s: Seconds after which a request that keeps failing is given up.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout_s: float, num_at_once: int, retry_for_s: float = _RETRY_FOR_S
    ) -> None:
        self._endpoint, self._retry_for_s = endpoint, retry_for_s
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else None
        self._service = ServiceClient(timeout_s, headers)
        self._slots = asyncio.Semaphore(num_at_once)
        self.num_failed_attempts = 0
        """Attempts that were tried again."""

    async def check(self) -> None:
        """Check that the server answers and knows the model.

        Raises:
            ConfigError: Wrong address, key or model.
            ServiceError: The server does not answer, or fails.
        """
        url = f"{self._endpoint.url}/models"
        try:
            async with self._service.session.get(url) as response:
                status, text = response.status, await response.text(errors="replace")
        except aiohttp.InvalidURL as error:
            raise ConfigError(f"--endpoint: not an address, got '{url}'. Write http://HOST:PORT/v1.") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ServiceError(
                f"--endpoint: no answer from {url} ({type(error).__name__}: {error}). Start the server, or correct the "
                "address."
            ) from error
        if status in (401, 403):
            raise ConfigError(
                f"--api-key-env: {url} refused the key, got HTTP {status}. Name a variable that holds a valid key."
            )
        if status >= 500:
            raise ServiceError(f"--endpoint: {url} failed, got HTTP {status}: {text:.200}. See the server's log.")
        names = _model_names(text) if status == 200 else []  # some servers have no such list
        if names and self._endpoint.model not in names:
            raise ConfigError(unknown_name("--model", self._endpoint.model, names))

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], sampling: Sampling
    ) -> Completion:
        """Ask for the next message of a conversation.

        Args:
            messages: The conversation, in OpenAI's form.
            tools: Schemas of the tools; empty without any.
            sampling: `max_tokens` bounds the answer. `top_k` is sent only if it is set, since few servers know it.

        Raises:
            RefusedError: The server refused the request.
            ServiceUnavailableError: The server kept failing.
        """
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": list(messages),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        body |= {"tools": list(tools)} if tools else {}
        body |= {"top_k": sampling.top_k} if sampling.top_k > 0 else {}
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            wait=wait_random_exponential(_RETRY_FIRST_S, _RETRY_LONGEST_S),
            stop=stop_before_delay(self._retry_for_s),
            before_sleep=self._note_retry,
            reraise=True,
        )
        async with self._slots:
            return await retrying(self._ask, body)

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()

    def _note_retry(self, state: RetryCallState) -> None:
        self.num_failed_attempts += 1
        if self.num_failed_attempts == 1 and state.outcome is not None:
            logger.warning("%s. The request is tried again; this warning appears once.", state.outcome.exception())

    async def _ask(self, body: dict[str, Any]) -> Completion:
        url = f"{self._endpoint.url}/chat/completions"
        answer = await self._service.post(url, body)
        if isinstance(answer, str):
            raise RefusedError(f"{url}: refused, {answer}")
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            message, finish = choice["message"], choice.get("finish_reason")
            calls = message.get("tool_calls") or []
            counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
            named = [
                {**call, "function": {**call["function"], "name": str(call["function"]["name"])}} for call in calls
            ]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ServiceUnavailableError(f"{url}: the answer has another form, got {answer!r:.200}") from error
        return Completion({**message, "tool_calls": named}, finish == "length", *counts)


def _model_names(text: str) -> list[str]:
    """The models that a server lists; empty if the answer has another form."""
    try:
        return [str(model["id"]) for model in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError):
        return []
