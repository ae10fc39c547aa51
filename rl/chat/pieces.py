"""Token ids as pieces of text, one for each token."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast


def token_pieces(tokenizer: PreTrainedTokenizerFast, token_ids: Iterable[int]) -> list[str]:
    """The text that each token adds to those before it, special tokens included.

    A character of several tokens is the piece of the last one; the pieces of the others are empty.

    Args:
        tokenizer: The tokenizer.
        token_ids: A whole sequence.

    Returns:
        As many pieces. Joined, they are the decoded text, without an incomplete character at its end.
    """
    stream, backend = DecodeStream(skip_special_tokens=False), tokenizer.backend_tokenizer
    return [stream.step(backend, int(token)) or "" for token in token_ids]
