"""The index behind the page's text filter: which trajectories contain which words.

A word is a run of letters, digits and `_`, in lower case. The browser looks for the words of the index that contain a
word of the filter, and joins their trajectories; it does not read the trajectories themselves.

The packed form is one line of JSON with `num_words` and `vocabulary_bytes`, then the vocabulary (words separated by
line ends, UTF-8), then for each word how many trajectories have it, then their numbers, as differences. The numbers are
little-endian base-128 varints.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_VARINT_ENDS = [1 << 7 * i for i in range(1, 5)]
"""The smallest values that take 2, 3, 4 and 5 bytes."""


class WordIndex:
    """Collects the words of trajectories in the order of their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words, self._lengths = array("I"), array("I")

    def add(self, record: dict[str, Any]) -> None:
        """Add the next trajectory.

        Args:
            record: From `rl.observability.trajectories.to_record`.
        """
        words = set(_WORD.findall("\n".join(record_texts(record)).lower()))
        numbers = self._numbers
        self._words.extend([numbers.setdefault(word, len(numbers)) for word in words])
        self._lengths.append(len(words))

    def pack(self) -> bytes:
        """The index as bytes, not yet compressed."""
        vocabulary = "\n".join(self._numbers).encode("utf-8", "replace")
        words = np.frombuffer(self._words, np.uint32) if self._words else np.zeros(0, np.uint32)
        rows = np.repeat(np.arange(len(self._lengths), dtype=np.uint32), np.array(self._lengths, np.int64))
        rows = rows[np.argsort(words, kind="stable")]
        counts = np.bincount(words, minlength=len(self._numbers)).astype(np.uint32)
        differences = np.diff(rows, prepend=np.uint32(0))
        if len(rows):
            starts = np.cumsum(counts) - counts
            differences[starts] = rows[starts]
        header = {"num_words": len(self._numbers), "vocabulary_bytes": len(vocabulary)}
        return json.dumps(header).encode() + b"\n" + vocabulary + _varints(counts) + _varints(differences)


def record_texts(record: dict[str, Any]) -> Iterator[str]:
    """The texts that the text filter looks at: what was said, called and returned, and why the trajectory failed."""
    yield from _message_texts(record["messages"])
    for turn in record["turns"]:
        yield turn["text"]
        for result in turn["results"]:
            yield result["name"]
            yield result["text"]
        yield from _message_texts(turn.get("messages", ()))
    yield record["ground_truth"]
    yield record.get("failure") or ""
    yield record.get("reward_error") or ""
    yield from record.get("reward_texts", {}).values()


def _message_texts(messages: Any) -> Iterator[str]:
    for message in messages:
        content = message.get("content")
        yield content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _varints(values: NDArray[np.uint32]) -> bytes:
    """Base-128 varints, low bits first; the high bit says that another byte follows."""
    sizes = np.searchsorted(_VARINT_ENDS, values, side="right") + 1
    ends = np.cumsum(sizes)
    packed = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for i in range(5):
        chosen = sizes > i
        more = (sizes[chosen] > i + 1).astype(np.uint8) << 7
        packed[(ends - sizes)[chosen] + i] = (values[chosen] >> np.uint32(7 * i)).astype(np.uint8) & 0x7F | more
    return packed.tobytes()
