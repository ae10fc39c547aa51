"""The APIs of OpenAI and Anthropic for the rollouts that are open: requests of one rollout share its ledger.

A key names a rollout, in the address (`/rollouts/KEY/v1/...`), in a header, as API key or in the body, so any client
works unchanged. Requests are answered with the tokens of the trained model, which are kept as sampled for the update.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from rl.errors import DataError, ModelError, RolloutError
from rl.rollout.dialog import Dialog
from rl.rollout.rollout_function import Policy, Reply
from rl.rollout.user_code import OutOfTokensError
from rl.services.http_guard import Bodies, make_application
from rl.serving.chat_answer import Answer
from rl.serving.client import AgentClient
from rl.serving.dialects import DIALECTS, Dialect
from rl.serving.dialogs import Dialogs
from rl.serving.errors import ApiError, answering
from rl.serving.open_rollouts import OpenRollout, OpenRollouts, not_found
from rl.serving.sample_request import SampleRequest
from rl.serving.streams import stream_answer
from rl.serving.tokenize_api import detokenized, read_detokenize_request, read_tokenize_request, tokenized
from rl.serving.values import read_body
from rl.types import Message, Sampling

_MAX_BODY_BYTES = 8 << 20
_MAX_BODIES_BYTES = 1 << 30
_MOST_CHARACTERS = 128
"""Longest token, characters: those of common vocabularies are runs of that many spaces."""
_LONG_TEXT = 1 << 16
"""Characters whose tokens are counted in a thread first."""
_SLACK = 16
"""Tokens by which a text that stands in a template may be shorter than alone."""
PREFIXES = ("openai/", "arbor:", "huggingface/", "local:")
"""What clients put before the name of a model."""


class Plain(Protocol):
    """Serves completions that belong to no rollout."""

    def new_policy(self, request: SampleRequest, number: int) -> tuple[Policy, Sampling]:
        """Begin an episode for one completion.

        Args:
            request: What it is for.
            number: Number of the completion in the request, from 0.

        Returns:
            The episode's policy, and the sampling for what the request leaves open.

        Raises:
            ApiError: No completion is served now.
        """
        ...

    def on_completion(self, request: SampleRequest, replies: Sequence[Reply], policies: Sequence[Policy]) -> None:
        """Take what was sampled, before it is sent.

        Args:
            request: The request.
            replies: One for each completion.
            policies: In the same order, as `new_policy` gave them.
        """
        ...


class Endpoint:
    """The routes under which the trained model answers.

    Args:
        dialogs: Renderers and parsers.
        model: The model's name in answers.
        max_model_len: Tokens of the longest context.
        plain: For requests that name no rollout; None: they are refused.

    Attributes:
        address: Where the routes are reached, `http://HOST:PORT`. `start` sets it.
    """

    def __init__(self, dialogs: Dialogs, *, model: str, max_model_len: int, plain: Plain | None = None) -> None:
        self.address = ""
        self._dialogs, self._model, self._max_model_len, self._plain = dialogs, model, max_model_len, plain
        self._rollouts = OpenRollouts()
        self._bodies = Bodies(_MAX_BODY_BYTES, _MAX_BODIES_BYTES)
        self._runner: web.AppRunner | None = None

    def add_routes(self, application: web.Application) -> None:
        """Serve the APIs in an application. Its runner needs `handler_cancellation`: who disconnects, ends his request.

        Args:
            application: As `rl.services.http_guard.make_application` makes one.
        """
        for prefix in ("", "/rollouts/{key}"):
            application.router.add_get(f"{prefix}/v1/models", answering(self._models, ApiError.body))
            application.router.add_post(f"{prefix}/tokenize", answering(self._tokenize, ApiError.body))
            application.router.add_post(f"{prefix}/detokenize", answering(self._detokenize, ApiError.body))
            for dialect in DIALECTS:
                handler = partial(self._sampled, dialect)
                application.router.add_post(f"{prefix}{dialect.path}", answering(handler, dialect.error))

    async def start(self) -> None:
        """Listen on any free port of the loopback interface."""
        application = make_application([])
        self.add_routes(application)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def open(self, policy: Policy, sampling: Sampling, key: str | None = None) -> AgentClient:
        """Answer requests of a rollout.

        Args:
            policy: Leads its conversations.
            sampling: For what a request leaves open.
            key: Names the rollout, and gives access to it; by default a new one that nobody can guess.
        """
        key = key or secrets.token_urlsafe(16)
        self._rollouts.add(OpenRollout(key, policy, sampling))
        return AgentClient(f"{self.address}/rollouts/{key}/v1", key, self._model)

    async def end(self, key: str) -> None:
        """Refuse further requests of a rollout, and end those that are under way: it takes no more tokens."""
        await self._rollouts.end(key)

    def is_open(self, key: str) -> bool:
        """Whether a rollout takes requests."""
        return key in self._rollouts

    def turns_of(self, key: str) -> dict[str, list[int]]:
        """The turns that each completion of an open rollout gave its client.

        Returns:
            For each completion's id, the places of its turns in `turn_scores`: among the turns that the client got, in
            the order in which they began.

        Raises:
            ApiError: The rollout is not open.
        """
        rollout = self._rollouts.of(key)
        places = {number: place for place, number in enumerate(rollout.policy.answered)}
        return {name: [places[number] for number in numbers] for name, numbers in rollout.turns.items()}

    async def _models(self, http: web.Request) -> web.Response:
        if self._rollouts.named_by(http) is None and self._plain is None:
            raise not_found()
        model = {"id": self._model, "object": "model", "owned_by": "turnwise", "max_model_len": self._max_model_len}
        return web.json_response({"object": "list", "data": [model]})

    async def _tokenize(self, http: web.Request) -> web.Response:
        _, given = await self._read(http)
        request = read_tokenize_request(given)
        self._check_model(request.model)
        dialog = await self._dialogs.of(request.offered_tools)
        try:
            return web.json_response(tokenized(request, dialog.renderer, self._max_model_len))
        except (DataError, ModelError) as error:
            raise ApiError(400, f"{error}", param="messages") from error

    async def _detokenize(self, http: web.Request) -> web.Response:
        _, given = await self._read(http)
        request = read_detokenize_request(given)
        self._check_model(request.model)
        return web.json_response(detokenized(request, (await self._dialogs.of([])).renderer))

    async def _sampled(self, dialect: Dialect[Any], http: web.Request) -> web.StreamResponse:
        key, given = await self._read(http)
        request = dialect.read(given)
        self._check_model(request.model)
        await self._check_length(request)
        dialog = await self._dialogs.of(request.offered_tools)
        answer = self._answer(dialect, key, request, dialog)
        if request.stream:
            return await stream_answer(http, answer, partial(dialect.events, request), dialect.error_event)
        return web.json_response(dialect.whole(request, await answer))

    async def _read(self, http: web.Request) -> tuple[str | None, Mapping[str, Any]]:
        """The rollout that a request belongs to, None for plain inference, and its body."""
        key = self._rollouts.named_by(http)
        async with self._bodies.read(http) as body:
            given = read_body(body)
        key = key or self._rollouts.named_in(given)
        if key is None and self._plain is None:
            raise not_found()
        return key, given

    def _check_model(self, name: str | None) -> None:
        """Refuse other models than the one that is served."""
        known = {self._model, Path(self._model).name}
        asked = name
        while asked is not None and not {asked, Path(asked).name} & known:  # a name may have its organization in front
            prefix = next((prefix for prefix in PREFIXES if asked.startswith(prefix)), None)
            if prefix is None:
                message = f"model: '{name:.100}' does not exist. Ask for '{self._model}'."
                raise ApiError(404, message, param="model", code="model_not_found")
            asked = asked.removeprefix(prefix)

    async def _check_length(self, request: SampleRequest) -> None:
        """Refuse texts that cannot fit, before they take the event loop's time to be rendered and encoded."""
        for number in range(0, request.num_completions, request.n):
            texts = _texts(request.conversation(number))
            length = sum(map(len, texts))
            if length > self._max_model_len * _MOST_CHARACTERS:
                raise self._too_long(request, f"{length} characters, more than {_MOST_CHARACTERS} for each token")
            if length > _LONG_TEXT:
                num_tokens = await asyncio.to_thread(self._dialogs.count_tokens, texts)
                if num_tokens > self._max_model_len + _SLACK * len(texts):
                    raise self._too_long(request, f"about {num_tokens} tokens")

    def _too_long(self, request: SampleRequest, found: str) -> ApiError:
        return ApiError(
            400,
            f"{request.prompt_key}: the context has {found}. generate_config.max_model_len is {self._max_model_len}.",
            param=request.prompt_key,
            code="context_length_exceeded",
        )

    async def _answer(self, dialect: Dialect[Any], key: str | None, request: SampleRequest, dialog: Dialog) -> Answer:
        """Sample the completions of a request. Who cancels it, ends them."""
        if key is None:
            return await self._sample(dialect, request, dialog, None)
        rollout = self._rollouts.of(key)  # it may have ended while the body arrived
        task = asyncio.create_task(self._sample(dialect, request, dialog, rollout))
        rollout.running.add(task)
        task.add_done_callback(rollout.running.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if key in self._rollouts or not task.cancelled():
                raise
            raise not_found() from None

    async def _sample(
        self, dialect: Dialect[Any], request: SampleRequest, dialog: Dialog, rollout: OpenRollout | None
    ) -> Answer:
        policies = self._policies(request, rollout)
        try:
            replies = await _all(request.ask(i, policy, own, dialog) for i, (policy, own) in enumerate(policies))
        except (DataError, ModelError) as error:
            raise ApiError(400, f"{error}") from error
        except OutOfTokensError as error:
            raise ApiError(400, f"{error}", param=request.prompt_key, code="context_length_exceeded") from error
        except RolloutError as error:
            raise ApiError(500, f"{error}") from error
        answer_id = f"{dialect.id_prefix}{secrets.token_hex(16)}"
        if rollout is not None:
            rollout.turns[answer_id] = [reply.number for reply in replies]
        elif self._plain is not None:
            self._plain.on_completion(request, replies, [policy for policy, _ in policies])
        decode = dialog.renderer.decode
        return Answer(answer_id, self._model, replies, lambda ids: [decode([token]) for token in ids])

    def _policies(self, request: SampleRequest, rollout: OpenRollout | None) -> list[tuple[Policy, Sampling]]:
        """Who samples each completion, with the sampling for what the request leaves open."""
        if rollout is not None:
            return [(rollout.policy, rollout.sampling)] * request.num_completions
        assert self._plain is not None, "other requests are refused"
        return [self._plain.new_policy(request, number) for number in range(request.num_completions)]


def _texts(messages: Sequence[Message]) -> list[str]:
    """What others than the model said; of the model's words a template may leave out thoughts."""
    texts: list[str] = []
    for message in messages:
        if message.get("role") != "assistant":
            content = message.get("content")
            parts = content if isinstance(content, list) else [content]
            found = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
            texts += [text for text in found if isinstance(text, str)]
    return texts


async def _all(turns: Iterable[Coroutine[Any, Any, Reply]]) -> list[Reply]:
    """The results of some turns that are sampled at once; if one fails, the others end."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(turn) for turn in turns]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [task.result() for task in running]
