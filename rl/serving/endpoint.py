"""The APIs of OpenAI and Anthropic for the trajectories that are open: requests of one trajectory share its ledger.

A key names a trajectory, in the address (`/rollouts/KEY/v1/...`) or as API key, so any client works unchanged.
Requests are answered with the tokens of the trained model, which are kept as sampled for the update.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from aiohttp import web

from rl.errors import DataError, ModelError, RolloutError
from rl.rollout.rollout_function import Policy, Reply
from rl.rollout.user_code import OutOfTokensError
from rl.services.http_guard import Bodies, make_application
from rl.serving.chat_answer import Answer
from rl.serving.chat_request import ChatRequest, read_body
from rl.serving.client import AgentClient
from rl.serving.dialects import DIALECTS, Dialect
from rl.serving.dialogs import Dialogs
from rl.serving.errors import ApiError
from rl.types import Sampling

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 32 << 20
_MAX_BODIES_BYTES = 1 << 30
_LONGEST_TEXT = 2000
_Handler = Callable[[web.Request], Awaitable[web.Response]]


class Endpoint:
    """The HTTP server of one rollout worker, on the loopback interface.

    Args:
        dialogs: Renderers and parsers.
        model: The model's name in answers.
        max_model_len: Tokens of the longest context.
    """

    def __init__(self, dialogs: Dialogs, *, model: str, max_model_len: int) -> None:
        self._dialogs, self._model, self._max_model_len = dialogs, model, max_model_len
        self._open: dict[str, tuple[Policy, Sampling]] = {}
        self._sampling: dict[str, set[asyncio.Task[Answer]]] = {}
        """What is being sampled, by key."""
        self._bodies = Bodies(_MAX_BODY_BYTES, _MAX_BODIES_BYTES)
        self._numbers = itertools.count()
        self._runner: web.AppRunner | None = None
        self._address = ""

    async def start(self) -> None:
        """Listen on any free port."""
        application = make_application([])
        for prefix in ("", "/rollouts/{key}"):
            application.router.add_get(f"{prefix}/v1/models", _answering(self._models, ApiError.body))
            for dialect in DIALECTS:
                handler = partial(self._sampled, dialect)
                application.router.add_post(f"{prefix}/v1/{dialect.path}", _answering(handler, dialect.error))
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._address = f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def open(self, policy: Policy, sampling: Sampling) -> AgentClient:
        """Answer requests of a trajectory.

        Args:
            policy: Leads its conversations.
            sampling: For what a request leaves open.
        """
        key = secrets.token_urlsafe(16)
        self._open[key], self._sampling[key] = (policy, sampling), set()
        return AgentClient(f"{self._address}/rollouts/{key}/v1", key, self._model)

    async def end(self, client: AgentClient) -> None:
        """Refuse further requests of a trajectory, and end those that are under way: it takes no more tokens."""
        del self._open[client.api_key]
        running = self._sampling.pop(client.api_key)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _find(self, http: web.Request) -> str:
        """The key of the trajectory that a request belongs to."""
        headers = http.headers
        sent = headers.get("Authorization", "").removeprefix("Bearer ").strip() or headers.get("X-Api-Key", "")
        key = http.match_info.get("key") or sent
        if key not in self._open:
            raise _ended()
        return key

    async def _models(self, http: web.Request) -> web.Response:
        self._find(http)
        model = {"id": self._model, "object": "model", "owned_by": "turnwise", "max_model_len": self._max_model_len}
        return web.json_response({"object": "list", "data": [model]})

    async def _sampled(self, dialect: Dialect, http: web.Request) -> web.Response:
        key = self._find(http)
        async with self._bodies.read(http) as body:
            request = dialect.read(read_body(body))
        if key not in self._open:  # it ended while the body arrived
            raise _ended()
        policy, own = self._open[key]
        task = asyncio.create_task(self._sample(policy, own, request))
        running = self._sampling[key]
        running.add(task)
        task.add_done_callback(running.discard)
        try:
            answer = await task  # a client that disconnects cancels it
        except asyncio.CancelledError:
            if key in self._open or not task.cancelled():
                raise
            raise _ended() from None
        if request.stream:
            return web.Response(text="".join(dialect.events(request, answer)), content_type="text/event-stream")
        return web.json_response(dialect.whole(request, answer))

    async def _sample(self, policy: Policy, own: Sampling, request: ChatRequest) -> Answer:
        dialog = await self._dialogs.of(request.offered_tools)
        sampling = request.sampling(own)
        try:
            replies = await _all(
                policy.chat(request.messages, max_tokens=request.limit, sampling=sampling, dialog=dialog)
                for _ in range(request.n)
            )
        except (DataError, ModelError) as error:
            raise ApiError(400, f"{error}") from error
        except OutOfTokensError as error:
            raise ApiError(400, f"{error}", param="messages", code="context_length_exceeded") from error
        except RolloutError as error:
            raise ApiError(500, f"{error}") from error
        decode = dialog.renderer.decode
        return Answer(
            f"chatcmpl-{next(self._numbers)}",
            self._model,
            replies,
            lambda ids: [decode([token]) for token in ids],
        )


def _ended() -> ApiError:
    return ApiError(
        404,
        "rollout: unknown, or it has ended. Use the base_url and the api_key of a client that is still in use.",
        code="rollout_not_found",
    )


async def _all(turns: Iterable[Coroutine[Any, Any, Reply]]) -> list[Reply]:
    """The results of some turns that are sampled at once; if one fails, the others end."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(turn) for turn in turns]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [task.result() for task in running]


def _answering(handler: _Handler, body_of: Callable[[ApiError], dict[str, Any]]) -> _Handler:
    """Answer errors in the form of a dialect."""

    async def answer(http: web.Request) -> web.Response:
        try:
            return await handler(http)
        except ApiError as error:
            return web.json_response(body_of(error), status=error.status)
        except web.HTTPException as error:
            told: Any = json.loads(error.text or "{}").get("detail", error.reason)
            return web.json_response(body_of(ApiError(error.status, f"{told}")), status=error.status)
        except Exception as error:  # a request may have any shape
            logger.exception("endpoint: a request to %s failed", http.path.rpartition("/v1/")[2])
            failure = ApiError(500, f"{type(error).__name__}: {error}"[:_LONGEST_TEXT])
            return web.json_response(body_of(failure), status=500)

    return answer
