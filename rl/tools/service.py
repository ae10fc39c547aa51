"""Asking a tool's service over HTTP: which answers count as the service's failure, and which are for the model."""

from __future__ import annotations

from typing import Any

import aiohttp

from rl.tools.base import ServiceUnavailableError

_BUSY = (408, 429)
"""Refusals that are the service's own, beside 5xx."""
_MAX_REFUSAL_CHARACTERS = 500


async def post_json(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any] | str:
    """Send one request.

    Args:
        session: Says how long an answer may take.
        url: Where to.
        body: Sent as JSON.

    Returns:
        The answer, or the text of a refusal (4xx).

    Raises:
        ServiceUnavailableError: No connection, no answer in time, a 5xx, or no JSON object; another attempt may help.
    """
    try:
        async with session.post(url, json=body) as response:
            if response.status >= 500 or response.status in _BUSY:
                raise ServiceUnavailableError(f"{url}: HTTP {response.status}: {(await response.text())[:200]}")
            if response.status >= 400:
                return (await response.text())[:_MAX_REFUSAL_CHARACTERS]
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ServiceUnavailableError(f"{url}: {type(error).__name__}: {error}") from error
    if not isinstance(answer, dict):
        raise ServiceUnavailableError(f"{url}: the answer is not a JSON object")
    return answer
