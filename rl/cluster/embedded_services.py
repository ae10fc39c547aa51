"""Starts the services that the tool YAML marks `embedded`, and returns their addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rl.config.schema import Config
from rl.services.embedded import EmbeddedRetriever, EmbeddedSandbox, EmbeddedService
from rl.tools.base import Tool
from rl.tools.entries import ToolEntry, read_entries
from rl.tools.registry import import_tool_class

_EMBEDDED = "embedded"
_STARTERS: dict[str, Callable[[dict[str, Any]], EmbeddedService]] = {
    "sandbox_fusion_url": lambda settings: EmbeddedSandbox(),
    "retrieval_service_url": lambda settings: EmbeddedRetriever(Path(settings["corpus_path"])),
}
"""What to start if a tool's setting of this name is `embedded`."""


@contextmanager
def embedded_services(config: Config) -> Iterator[dict[str, dict[str, str]]]:
    """Start the services of the tools in `rl_config.tool_config_path` whose address is `embedded`.

    One sandbox serves all tools; tools that search the same corpus share a retriever. All end with the context.

    Yields:
        Settings to override, by tool name: `{"search": {"retrieval_service_url": "http://..."}}`.

    Raises:
        ServiceError: A service did not start.
    """
    path = config.rl_config.tool_config_path
    entries = read_entries(Path(path)) if config.rl_config.multi_turn_enable and path else []
    overrides: dict[str, dict[str, str]] = {}
    urls: dict[tuple[str, Any], str] = {}
    with ExitStack() as stack:
        for entry in entries:
            for key, start in _STARTERS.items():
                if entry.settings.get(key, _default(entry, key)) != _EMBEDDED:
                    continue
                service = (key, entry.settings.get("corpus_path"))
                if service not in urls:
                    urls[service] = stack.enter_context(start(entry.settings)).url
                overrides[entry.schema["function"]["name"]] = {key: urls[service]}
        yield overrides


def _default(entry: ToolEntry, key: str) -> Any:
    """The default of the tool's class for a setting that the YAML does not give."""
    if entry.kind != "class_name":
        return None
    tool_class = import_tool_class(entry.where, entry.target)
    if not issubclass(tool_class, Tool):
        return None
    return next((field.default for field in fields(tool_class.config_class) if field.name == key), None)
