"""The body of `POST /retrieve`: Search-R1's fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, FailFast, Field, StrictBool, StrictInt, StrictStr, TypeAdapter

from rl.services.json_body import RequestError, check

_MAX_QUERIES, _LONGEST_QUERY, _MAX_DOCUMENTS = 1024, 8192, 16384


def _check_length(query: str) -> str:
    if len(query) > _LONGEST_QUERY:
        raise ValueError(f"may have at most {_LONGEST_QUERY} characters, got {len(query)}; send a shorter query")
    return query


Query = Annotated[StrictStr, AfterValidator(_check_length)]


@dataclass(slots=True, frozen=True)
class RetrieveRequest:
    """A checked body. The defaults are Search-R1's."""

    queries: Annotated[list[Query], FailFast(), Field(max_length=_MAX_QUERIES)]
    topk: Annotated[StrictInt, Field(ge=1, le=_MAX_DOCUMENTS)] = 3
    """Documents for each query."""
    return_scores: StrictBool = False


_ADAPTER = TypeAdapter(RetrieveRequest)


def parse_request(body: Any) -> RetrieveRequest:
    """Check the decoded body of a request. Unknown fields are ignored.

    Raises:
        RequestError: A field is missing or wrong, or the request asks for too much; the message names the field.
    """
    request = check(_ADAPTER, body)
    if request.topk * max(len(request.queries), 1) > _MAX_DOCUMENTS:
        given = f"got {request.topk} for each of {len(request.queries)}"
        raise RequestError(f"topk: may be at most {_MAX_DOCUMENTS} documents for all queries together, {given}")
    return request
