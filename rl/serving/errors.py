"""Errors of the endpoint in OpenAI's form: a status and a JSON object that clients turn into exceptions."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from rl.errors import ConfigError, DataError, TurnwiseError, first_problem

logger = logging.getLogger(__name__)

_LONGEST_TEXT = 2000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiError(Exception):
    """An answer with an error status.

    Args:
        status: HTTP status.
        message: What is wrong and what to do.
        param: The field of the request that is wrong.
        code: OpenAI's word for the case, such as `context_length_exceeded`.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(param: str, message: str) -> ApiError:
    """An error about one field of a request.

    Args:
        param: The field.
        message: What it must be, and what it is.
    """
    return ApiError(400, f"{param}: {message}", param=param)


def wrong_field(error: ValidationError) -> ApiError:
    """The first problem that pydantic found in a request."""
    place = error.errors(include_url=False)[0]["loc"]
    return ApiError(400, f"{first_problem(error)}.", param=str(place[0]) if place else None)


def answering(handler: Handler, body_of: Callable[[ApiError], dict[str, Any]]) -> Handler:
    """Make a handler answer errors in the form of a dialect.

    Args:
        handler: Answers a request, or raises.
        body_of: The JSON object of an error.
    """

    async def answer(http: web.Request) -> web.StreamResponse:
        try:
            return await handler(http)
        except Exception as error:  # a request may have any shape
            told = as_api_error(error, route_of(http))
            return web.json_response(body_of(told), status=told.status)

    return answer


def route_of(http: web.Request) -> str:
    """The address of a request as the route spells it, `/rollouts/{key}/reward`: without keys, for logs."""
    resource = http.match_info.route.resource
    return resource.canonical if resource is not None else "an unknown address"


def as_api_error(error: Exception, path: str) -> ApiError:
    """Any error as one that a client is told. What nobody expects is logged.

    Args:
        error: What a handler raised.
        path: What was asked for, from `route_of`.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, web.HTTPException):
        told: Any = json.loads(error.text or "{}").get("detail", error.reason)
        return ApiError(error.status, f"{told}")
    if isinstance(error, TurnwiseError):
        return ApiError(400 if isinstance(error, ConfigError | DataError) else 500, f"{error}"[:_LONGEST_TEXT])
    logger.error("endpoint: a request to %s failed", path, exc_info=error)
    return ApiError(500, f"{type(error).__name__}: {error}"[:_LONGEST_TEXT])
