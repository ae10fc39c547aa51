"""Token ids as pieces of text, one for each token."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8, so a token further back is no part of one that is still incomplete."""


def token_pieces(tokenizer: PreTrainedTokenizerFast, token_ids: Iterable[int]) -> list[str]:
    """The text that each token adds to those before it, special tokens included.

    A character of several tokens is the piece of the last one; the pieces of the others are empty. Bytes that are no
    character are U+FFFD, as in the decoded text. An added token is always a piece of its own, also after an incomplete
    character.

    Args:
        tokenizer: The tokenizer.
        token_ids: A whole sequence.

    Returns:
        As many pieces. Joined, they are the decoded text.
    """
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder
    stream = DecodeStream(skip_special_tokens=False)
    pieces: list[str] = []
    pending: list[int] = []  # tokens whose text is not known yet; a stream decodes them all at each step
    for token in map(int, token_ids):
        if pending and token in added:
            pieces += _pieces_alone(backend, pending)
            pending, stream = [], DecodeStream(skip_special_tokens=False)
        piece = stream.step(backend, token)
        pending.append(token)
        if piece is not None:
            pieces += [""] * (len(pending) - 1) + [piece]
            pending = []
        elif len(pending) == _LONGEST_CHARACTER:
            settled = _first_pieces(backend, pending)
            pieces += settled
            pending, stream = pending[len(settled) :], DecodeStream(skip_special_tokens=False)
            for kept in pending:
                stream.step(backend, kept)
    return pieces + _pieces_alone(backend, pending)


def _pieces_alone(backend: Tokenizer, pending: list[int]) -> list[str]:
    """Pieces of tokens that no character continues."""
    pieces: list[str] = []
    while len(pieces) < len(pending):
        pieces += _first_pieces(backend, pending[len(pieces) :])
    return pieces


def _first_pieces(backend: Tokenizer, pending: list[int]) -> list[str]:
    """Pieces of the fewest tokens after which the rest, decoded by itself, has the same text."""
    text = backend.decode(pending, skip_special_tokens=False)
    for number in range(1, len(pending)):
        rest = backend.decode(pending[number:], skip_special_tokens=False)
        if text.endswith(rest):
            return [""] * (number - 1) + [text.removesuffix(rest)]
    return [""] * (len(pending) - 1) + [text]
