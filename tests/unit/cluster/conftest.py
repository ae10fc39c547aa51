"""Remote calls without Ray: a reference holds its value, and `ray.wait` hands them out in a chosen order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray


class Ref:
    """The result of a call: a value, an error, or nothing ever."""

    def __init__(self, value: Any = None, *, error: Exception | None = None, never: bool = False) -> None:
        self.value, self.error, self.never = value, error, never


class Method:
    """`handle.method.remote(...)` that calls a plain function at once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def remote(self, *args: Any) -> Any:
        value = self.function(*args)
        is_made = isinstance(value, Ref) or (isinstance(value, tuple) and all(isinstance(v, Ref) for v in value))
        return value if is_made else Ref(value)


def _wait(refs: list[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
    done = [ref for ref in refs if not ref.never][-num_returns:]  # the latest first: order must not matter
    return done, [ref for ref in refs if ref not in done]


def _get(ref: Ref) -> Any:
    if ref.error is not None:
        raise ref.error
    return ref.value


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "wait", _wait)
    monkeypatch.setattr(ray, "get", _get)
    monkeypatch.setattr(ray, "put", Ref)
    monkeypatch.setattr(ray, "kill", lambda worker: worker.killed())
