"""Turns conversations that write calls and results out as text into messages with tool calls."""

from __future__ import annotations

import re

from rl.errors import DataError
from rl.types import Message

_CALL = re.compile(r"<code>(.*?)</code>\s*<interpreter>(.*?)</interpreter>", re.S)
_FENCE = re.compile(r"```(?:python|py)?\n(.*?)```", re.S)
_MARK = re.compile(r"</?(?:code|interpreter)>")
_ANSWER_TAG = re.compile(r"</?answer>")
_QUESTION = "*user question:*"


def read_retool(where: str, messages: list[Message]) -> list[Message]:
    r"""Read a conversation of JoeYing/ReTool-SFT, the cold start of ReTool (arXiv:2504.11536).

    Example of an assistant's text, which becomes a call, its result and an answer:

        I compute it. <code>```python
        print(6 * 7)
        ```</code>
        <interpreter>42</interpreter> <answer>\boxed{42}</answer>

    Instructions before the question go away, because the chat template describes the tool.

    Args:
        where: File and row, for errors.
        messages: User and assistant in turn.

    Returns:
        Messages with calls of `code_interpreter`, and its results.

    Raises:
        DataError: A program has no result, or a result no program.
    """
    read: list[Message] = []
    for message in messages:
        text = message["content"]
        if message["role"] != "assistant":
            question = _ANSWER_TAG.sub("", text.rpartition(_QUESTION)[2]).strip()
            read.append({**message, "content": question if message["role"] == "user" else text})
            continue
        *calls, answer = _split(where, text)
        for said, code, result in calls:
            call = {"name": "code_interpreter", "arguments": {"code": code}}
            read.append({"role": "assistant", "content": said, "tool_calls": [{"type": "function", "function": call}]})
            read.append({"role": "tool", "content": result})
        if answer[0]:
            read.append({"role": "assistant", "content": answer[0]})
    return read


INLINE_CALLS = {"retool": read_retool}
"""Readers by the names in `DatasetConfig.inline_calls`."""


def _split(where: str, text: str) -> list[tuple[str, ...]]:
    """Split an assistant's text into (said, code, result) for each call, and (said,) for the rest."""
    pieces = _CALL.split(text)
    if any(_MARK.search(piece) for piece in pieces):
        raise DataError(
            f"{where}: the assistant's text has <code> or <interpreter> without the other, got "
            f"{next(piece for piece in pieces if _MARK.search(piece))[-80:]!r}. Correct the row."
        )
    said = [_ANSWER_TAG.sub("", piece).strip() for piece in pieces[::3]]
    programs = [fenced[1] if (fenced := _FENCE.search(code)) else code for code in pieces[1::3]]
    results = [result.strip() for result in pieces[2::3]]
    calls = zip(said, (code.strip() for code in programs), results, strict=False)
    return [*calls, (said[-1],)]
