"""Encodes rendered text so that only the chat template, and never a text of the data, can write a control token.

A text of the data is broken up before the template sees it: where it spells a token such as `<|im_end|>`, a mark cuts
the spelling in two. The rendered whole is encoded piece by piece between the marks, so the spelling becomes plain text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerFast

BREAK = "\ufdd0"
"""Marks a cut. A Unicode noncharacter: no real text contains it."""
_TAGS_OF_THOUGHTS = ("<think>", "</think>")
_ANCHORS = ("\n", ".", ":", "0", "a", "|")
_SAMPLES = ("a b", " a b")


class Marked(str):
    """A text that is marked already: `TextEncoder.break_up` returns it unchanged."""

    __slots__ = ()


class TextEncoder:
    """Encodes text with one tokenizer.

    Args:
        tokenizer: The tokenizer.
        frame: Added tokens that the chat template puts around turns. They count as control tokens, and so does each
            added token that the tokenizer calls special.
        spoken: Added tokens that the model itself says in its calls. They are not control tokens, even if the tokenizer
            calls them special; neither are the tags of thoughts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, frame: Collection[str] = (), spoken: Collection[str] = ()
    ) -> None:
        tokenizer.encode("", add_special_tokens=False)  # takes truncation and padding, if any, off its backend
        self._backend = tokenizer.backend_tokenizer
        added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if _is_marker(t.content)}
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        control = (special | set(frame)) - {*_TAGS_OF_THOUGHTS, *spoken}
        self.added_ids = frozenset(added.values())
        """Ids of all added tokens except single characters and runs of spaces."""
        self.control_ids = frozenset(i for text, i in added.items() if text in control)
        """Ids that only the template may write. A tool's result may not write any of `added_ids`."""
        self._every_start = _starts_of(added)
        self._control_start = _starts_of(control & added.keys())
        self._anchors = self._find_anchors(tokenizer)

    def break_up(self, text: str, *, of_tool: bool = True) -> Marked:
        """Mark a text of the data, to be rendered and then encoded by `encode`.

        Args:
            text: Any text; a `Marked` one is returned as it is.
            of_tool: The text comes from outside and may not hold any added token. Other texts may name the tags of
                thoughts and calls, as instructions do.
        """
        return text if isinstance(text, Marked) else Marked(BREAK.join(self._pieces(text, of_tool=of_tool)))

    def encode(self, text: str, *, behind: bool = False) -> list[int]:
        """Token ids of a rendered text; an added token in it is one token, unless a mark cuts it.

        Args:
            text: The text, with marks.
            behind: The text follows other tokens, which do not change. A tokenizer that puts a space before the first
                word, as SentencePiece does, then does not.
        """
        first, *others = text.split(BREAK)
        ids = self._encode_behind(first)[0] if behind else self.encode_whole(first)
        return ids + [i for piece in others for i in self._encode_behind(piece)[0]]

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text without marks, from its beginning.

        Calls the backend directly: the wrapper of transformers costs half as much again, and sends a batch of one text
        through a thread pool.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids if text else []
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a tool's result covers."""
        offsets: list[tuple[int, int]] = []
        start = 0
        for piece in self._pieces(text, of_tool=True):
            offsets += [(start + first, start + last) for first, last in self._encode_behind(piece)[1]]
            start += len(piece)
        return offsets

    def _pieces(self, text: str, *, of_tool: bool) -> list[str]:
        text = text.replace(BREAK, "\ufffd")
        pattern = self._every_start if of_tool else self._control_start
        pieces = _cut(text, [match.start() + 1 for match in pattern.finditer(text)])
        if self._backend.normalizer is None:
            return pieces
        forbidden = self.added_ids if of_tool else self.control_ids
        return [part for piece in pieces for part in self._cut_normalized(piece, forbidden)]

    def _cut_normalized(self, piece: str, forbidden: Collection[int]) -> list[str]:
        """Cut what becomes a token only by the tokenizer's normalizer, as full-width letters do with NFKC."""
        ids, offsets = self._encode_behind(piece)
        cuts = [start + 1 for i, (start, end) in zip(ids, offsets, strict=True) if i in forbidden and end - start > 1]
        parts = _cut(piece, cuts)
        return parts if not cuts else [p for part in parts for p in self._cut_normalized(part, forbidden)]

    def _encode_behind(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a text that follows other text: encoded after an anchor, whose tokens are removed."""
        if not text:
            return [], []
        for anchor, anchor_ids in self._anchors:
            whole = self._backend.encode(anchor + text, add_special_tokens=False)
            n = len(anchor_ids)
            if whole.ids[:n] == anchor_ids:
                return whole.ids[n:], [(max(a - len(anchor), 0), b - len(anchor)) for a, b in whole.offsets[n:]]
        alone = self._backend.encode(text, add_special_tokens=False)
        return alone.ids, alone.offsets

    def _find_anchors(self, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, list[int]]]:
        """Find texts behind which other text can be encoded without changing the tokens of either.

        Empty for a tokenizer that encodes a text the same way everywhere: no anchor is needed.
        """
        end = tokenizer.eos_token
        candidates = ([end] if isinstance(end, str) else []) + list(_ANCHORS)
        anchors = [(text, self.encode_whole(text)) for text in candidates]
        alone = [self.encode_whole(sample) for sample in _SAMPLES]
        if all(
            self.encode_whole(text + sample) == ids + sample_ids
            for text, ids in anchors
            for sample, sample_ids in zip(_SAMPLES, alone, strict=True)
        ):
            return []
        return [(text, ids) for text, ids in anchors if all(self._decodes_to(text + s) for s in _SAMPLES)]

    def _decodes_to(self, text: str) -> bool:
        decoded: str = self._backend.decode(self.encode_whole(text), skip_special_tokens=False)
        return decoded == text


def _is_marker(token: str) -> bool:
    return len(token) > 1 and not token.isspace()


def _starts_of(tokens: Collection[str]) -> re.Pattern[str]:
    alternatives = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)"
    return re.compile(f"(?=(?:{alternatives}))")


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
