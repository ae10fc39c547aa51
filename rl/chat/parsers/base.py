"""The interface of parsers, and the scan that they share: tags in order, thoughts skipped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rl.thoughts import CLOSE, OPEN
from rl.types import ToolCall


class Parser(Protocol):
    """One way to write tool calls as text. `parse` reads any text without raising."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn, besides the end-of-turn token, except inside a thought."""
        ...

    @property
    def result_format(self) -> str | None:
        """The text around a result, which replaces `{}`: right behind the call, in the same assistant turn.

        None: a result is a message of the role `tool`.
        """
        ...

    @property
    def instructions(self) -> str | None:
        """What the prompt must say, in front of the first user message. None: the chat template shows the tools."""
        ...

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> Parser:
        """The same parser for given tools.

        Args:
            tools: In OpenAI's form; arguments written as plain text get their types from here.

        Raises:
            ConfigError: The format cannot call one of them.
        """
        ...

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; one that cannot be read has an `error`."""
        ...

    def render(self, call: ToolCall) -> str | None:
        """The call as the model is expected to write it; `parse` reads it back. None: only the template knows."""
        ...


ReadCall = Callable[[str, "re.Match[str]"], tuple[ToolCall | None, int]]
"""Takes a text and the opening tag found in it; returns the call (None: no call begins here) and where to go on."""


def opening_tags(pattern: str) -> re.Pattern[str]:
    """A pattern for `read_calls`: the given tags, and those of thoughts."""
    return re.compile(f"(?P<think>{OPEN})|(?P<end>{CLOSE})|{pattern}")


def read_calls(text: str, tags: re.Pattern[str], read: ReadCall) -> list[ToolCall]:
    """Read calls from left to right.

    Thoughts are found as in `rl.thoughts`, except that tags inside a call belong to the call. In a thought that is not
    closed the first call becomes an error: the model must learn that it was not run.

    Args:
        text: A turn.
        tags: As `opening_tags` makes it.
        read: Called for each opening tag outside thoughts.

    Returns:
        The calls in order.
    """
    calls: list[ToolCall] = []
    position = 0
    while (tag := tags.search(text, position)) is not None:
        position = tag.end()
        if tag["end"]:
            calls.clear()
        elif tag["think"]:
            end = text.find(CLOSE, position)
            if end < 0:
                return [*calls, *_call_in_thought(text, position, tags, read)]
            position = end + len(CLOSE)
        else:
            call, position = read(text, tag)
            if call is not None:
                calls.append(call)
    return calls


def _call_in_thought(text: str, position: int, tags: re.Pattern[str], read: ReadCall) -> list[ToolCall]:
    """The first well-formed call of a thought that is not closed, as an error; nothing where there is none."""
    while (tag := tags.search(text, position)) is not None:
        position = tag.end()
        if not tag["think"]:  # no `</think>` comes any more
            call, position = read(text, tag)
            if call is not None and call.error is None:
                return [refused_in_thought(call)]
    return []


def refused_in_thought(call: ToolCall) -> ToolCall:
    """A placeholder for a well-formed call that stands in a thought that is not closed."""
    problem = f"the call was not run, because it stands in a thought that is not closed. Write {CLOSE} before a call."
    return replace(call, arguments={}, error=problem, is_in_thought=True)


def call_ends(opening: str, closing: str) -> re.Pattern[str]:
    """A pattern for `until_end`: where a call that cannot be read ends. The group `close` is its closing tag."""
    return re.compile(f"(?P<close>{closing})|{opening}|{CLOSE}")


def until_end(text: str, start: int, ends: re.Pattern[str]) -> tuple[str, int, bool]:
    """Find the end of a call that cannot be read: its closing tag, the next call, or a thought's end.

    Args:
        text: A turn.
        start: Behind the opening tag.
        ends: As `call_ends` makes it.

    Returns:
        The text of the call, where to go on after it, and whether it has a closing tag.
    """
    end = ends.search(text, start)
    if end is None:
        return text[start:], len(text), False
    is_closed = end["close"] is not None
    return text[start : end.start()], end.end() if is_closed else end.start(), is_closed


def failed_call(raw: str, error: str, name: str = "") -> ToolCall:
    """A placeholder for a call that cannot be read.

    Args:
        raw: Its text.
        error: What is wrong and what to write, without a full stop at the end.
        name: The tool's name, if known.
    """
    return ToolCall(name, {}, raw, f"{error}.")
