"""Encodes rendered text, where text of the environment is broken up so that it holds no special token.

An added token spelled out in it (`<|im_end|>` printed by a program) is encoded as the plain text it is.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast

_BREAK = "\ufdd0"  # a Unicode noncharacter: no text means it, so it can mark where a text is cut


class TextEncoder:
    """Encodes text with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode("", add_special_tokens=False)  # takes truncation and padding, if any, off its backend
        self._backend = tokenizer.backend_tokenizer
        literals = [token for token in tokenizer.get_added_vocab() if len(token) > 1 and not token.isspace()]
        alternatives = "|".join(map(re.escape, sorted(literals, key=len, reverse=True))) or r"(?!)"
        self._added_start = re.compile(f"(?=(?:{alternatives}))")

    def break_up(self, text: str) -> str:
        """Mark a text of the environment, to be rendered and then encoded by `encode`."""
        return _BREAK.join(self._pieces(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text; an added token in it is one token, unless it was broken up."""
        return [i for piece in text.split(_BREAK) for i in self.encode_whole(piece)]

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text that nothing in was broken up.

        By the backend alone: what transformers does around it costs half as much again, and its batches of one text go
        through a pool of threads.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids if text else []
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a text of the environment covers."""
        offsets: list[tuple[int, int]] = []
        start = 0
        pieces = self._pieces(text)
        encodings = self._tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for piece, covered in zip(pieces, encodings["offset_mapping"], strict=True):
            offsets += [(start + first, start + last) for first, last in covered]
            start += len(piece)
        return offsets

    def _pieces(self, text: str) -> list[str]:
        text = text.replace(_BREAK, "\ufffd")
        starts = [match.start() + 1 for match in self._added_start.finditer(text)]
        return [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
