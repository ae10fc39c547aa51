"""Errors of the endpoint in OpenAI's form: a status and a JSON object that clients turn into exceptions."""

from __future__ import annotations

from typing import Any


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
