"""The body of the retriever's request, checked: Search-R1's fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl.services.json_body import show

_DEFAULT_TOPK = 3  # Search-R1's
_MAX_QUERIES, _LONGEST_QUERY, _MAX_DOCUMENTS = 1024, 8192, 16384


class RequestError(ValueError):
    """A field is missing or wrong; answered with HTTP 422."""


@dataclass(slots=True, frozen=True)
class RetrieveRequest:
    """The body of `POST /retrieve`, checked."""

    queries: list[str]
    topk: int
    """At least 1."""
    return_scores: bool


def parse_request(body: Any) -> RetrieveRequest:
    """Check a request's body. Unknown fields are ignored.

    Args:
        body: Decoded JSON: `queries`, and optionally `topk` and `return_scores`.

    Returns:
        The request, with Search-R1's defaults for what is missing.

    Raises:
        RequestError: A field is missing or wrong, or asks for too much at once; the text names it.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    queries, scores = body.get("queries"), body.get("return_scores")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise RequestError(f"queries: must be a list of texts, got {show(queries)}")
    if len(queries) > _MAX_QUERIES:
        raise RequestError(f"queries: may be at most {_MAX_QUERIES}, got {len(queries)}; send them in parts")
    for number, query in enumerate(queries):
        if len(query) > _LONGEST_QUERY:
            limit = f"may have at most {_LONGEST_QUERY} letters, got {len(query)}; ask for less at once"
            raise RequestError(f"queries: number {number}, from 0, {limit}")
    topk = _DEFAULT_TOPK if body.get("topk") is None else body["topk"]
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
        raise RequestError(f"topk: must be a whole number of at least 1, got {show(topk)}")
    if topk * max(len(queries), 1) > _MAX_DOCUMENTS:
        limit = f"may be at most {_MAX_DOCUMENTS} documents for all queries together"
        raise RequestError(f"topk: {limit}, got {show(topk)} for each of {len(queries)}")
    if not isinstance(scores, bool | None):
        raise RequestError(f"return_scores: must be true or false, got {show(scores)}")
    return RetrieveRequest(queries, topk, bool(scores))
