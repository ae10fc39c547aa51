"""Token ids as pieces of text, one for each token."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

_NO_CHARACTER = "\ufffd"
"""Stands for bytes that are not a whole character, as decoders write it."""


def token_pieces(tokenizer: PreTrainedTokenizerFast, token_ids: Iterable[int]) -> list[str]:
    """The text that each token adds to those before it, special tokens included.

    A character of several tokens is the piece of the last one; the pieces of the others are empty. An added token is
    always a piece of its own, also after an incomplete character.

    Args:
        tokenizer: The tokenizer.
        token_ids: A whole sequence.

    Returns:
        As many pieces. Joined, they are the decoded text.
    """
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder
    stream, is_incomplete = DecodeStream(skip_special_tokens=False), False
    pieces: list[str] = []
    for token in map(int, token_ids):
        if is_incomplete and token in added:
            pieces[-1], stream = _NO_CHARACTER, DecodeStream(skip_special_tokens=False)
        piece = stream.step(backend, token)
        is_incomplete = piece is None
        pieces.append(piece or "")
    if is_incomplete:
        pieces[-1] = _NO_CHARACTER
    return pieces
