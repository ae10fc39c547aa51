"""Pages that open from disk: one HTML file with its script, its style and its data, and no way to the network.

`render_page` builds one. Its data are chunks: gzip in base64, in elements that the browser does not run. Base64 has no
`<`, so a chunk cannot end its element, whatever it contains. The script reads them with `turnwise.readChunk(name)`,
`turnwise.readJson(name)` or `turnwise.readLines(name)`, and draws curves with `turnwise.drawLines(element, options)`
(tools/page/src/lines.ts). tools/page has the sources of the assets and builds them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_ASSETS = Path(__file__).parent / "assets"


@cache
def read_asset(name: str) -> str:
    """The text of a file of the `assets` folder.

    Args:
        name: `charts.js`, `charts.css`, `viewer.js` or `viewer.css`.
    """
    return (_ASSETS / name).read_text(encoding="utf-8")


def pack_chunk(content: bytes) -> bytes:
    """Compress a chunk, as the page's script expects it; the same content always gives the same bytes."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def pack_json(value: Any) -> bytes:
    """Compress a value as a chunk of JSON. A lone surrogate becomes `?`; the page's script reads NaN as null."""
    return pack_chunk(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def render_page(
    title: str,
    *,
    script: str,
    style: str,
    chunks: Iterable[tuple[str, bytes]] = (),
    chunk_address: str | None = None,
) -> Iterator[bytes]:
    """Build a page that runs one script and loads nothing from outside.

    Args:
        title: Text of the title.
        script: JavaScript: `read_asset("viewer.js")`, or `read_asset("charts.js")` followed by a script of one's own.
        style: CSS.
        chunks: Names (letters, digits, `_`, `-`, `/`) and content from `pack_chunk`. The browser runs the script before
            it reads them, and the first chunks are there first.
        chunk_address: Path from which the script fetches chunks instead, for a page that a server sends.

    Yields:
        The parts of the page, UTF-8. A large page is never in memory as a whole.
    """
    for text in (script, style):
        assert "</" + "script" not in text.lower() and "<!--" not in text, "would end or hide its element"
    policy = content_policy(script, style, connect=chunk_address is not None)
    attribute = f' data-chunks="{html.escape(chunk_address)}"' if chunk_address is not None else ""
    yield (
        f'<!doctype html>\n<html lang="en"{attribute}>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f'<style>{style}</style>\n</head>\n<body>\n<div id="page"></div>\n<script>{script}</script>\n'
    ).encode("utf-8", "replace")
    for name, packed in chunks:
        yield f'<script type="application/gzip" id="chunk:{html.escape(name)}">'.encode()
        yield base64.b64encode(packed)
        yield b"</script>\n"
    yield b"</body>\n</html>\n"


def content_policy(script: str, style: str, *, connect: bool) -> str:
    """A Content-Security-Policy that allows this script and this style by their hashes, and no network.

    Args:
        script: The page's script.
        style: The page's style.
        connect: Allow requests to the page's own server.
    """
    own = "'self'" if connect else "'none'"
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"connect-src {own}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
