"""HTTP requests of a tool to its service."""

from __future__ import annotations

from typing import Any

import aiohttp

from rl.tools.base import ServiceUnavailableError

_BUSY = (408, 429)
"""Statuses that mean a failure of the service, in addition to 5xx."""
_MAX_REFUSAL_CHARACTERS = 500


class ServiceClient:
    """The connections of a tool to its service, opened at the first request in the event loop that uses them."""

    def __init__(self, timeout_s: float, headers: dict[str, str] | None = None) -> None:
        self._timeout_s, self._headers = timeout_s, headers
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """An open session. Each request has `timeout_s` seconds."""
        if self._session is None:
            connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self._session

    async def post(self, url: str, body: dict[str, Any]) -> dict[str, Any] | str:
        """Send JSON.

        Returns:
            The answer, or the text of a refusal (4xx).

        Raises:
            ServiceUnavailableError: No connection, no answer in time, a 5xx, or not a JSON object. A retry may help.
        """
        try:
            async with self.session.post(url, json=body) as response:
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

    async def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None
