"""`GET /` of the service: one page that shows the training, and what it shows as JSON."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from rl.serving.history import History

_TEMPLATE = Path(__file__).with_name("page.html")


async def answer_page(http: web.Request) -> web.Response:
    """`GET /`. The page itself tells nothing: it asks for what it shows, with the service's key where one is needed."""
    text, policy = _page()
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return web.Response(text=text, content_type="text/html", headers=headers)


def curve_json(history: History) -> dict[str, list[dict[str, float]]]:
    """`GET /v1/curve`: the mean reward of each step."""
    return {"steps": [asdict(one) for one in history.rewards]}


def errors_json(history: History) -> dict[str, list[dict[str, str | float]]]:
    """`GET /v1/errors`: what went wrong last, the newest first."""
    return {"errors": [asdict(one) for one in reversed(history.problems)]}


@functools.cache
def _page() -> tuple[str, str]:
    """The page, and what a browser may load for it: its own style and script, by their hashes, and nothing else."""
    text = _TEMPLATE.read_text(encoding="utf-8")
    style, script = (_hash_of(text, tag) for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash_of(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None, f"the page has one {tag}"
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return f"'sha256-{digest}'"
