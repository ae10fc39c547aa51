from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

import rl.chat.pieces
from rl.chat.pieces import token_pieces
from rl.chat.renderer import load_tokenizer
from tests.tiny import make_tiny_model


def test_pieces_are_the_text_that_each_token_adds(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    text = "<|im_start|>user\n9 + 8 is é 世 🎉 not"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = token_pieces(tokenizer, token_ids)
    assert len(pieces) == len(token_ids)
    assert "".join(pieces) == text
    assert pieces[0] == "<|im_start|>"
    assert any("🎉" in piece for piece in pieces)  # whole, in the last of its tokens


def test_an_incomplete_character_is_one_mark_and_no_part_of_an_added_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    token_ids = tokenizer.encode("a🎉", add_special_tokens=False)[:-1]
    assert len(token_ids) > 2
    expected = ["a"] + [""] * (len(token_ids) - 2) + ["\ufffd"]
    assert token_pieces(tokenizer, token_ids) == expected
    (end,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert token_pieces(tokenizer, [*token_ids, end]) == [*expected, "<|im_end|>"]


class CountingStream:
    """Counts the tokens that each step decodes."""

    decoded: ClassVar[list[int]] = []

    def __init__(self, *, skip_special_tokens: bool) -> None:
        self.stream, self.num_pending = DecodeStream(skip_special_tokens=skip_special_tokens), 0

    def step(self, backend: Tokenizer, token: int) -> str | None:
        self.num_pending += 1
        self.decoded.append(self.num_pending)
        piece = self.stream.step(backend, token)
        self.num_pending = self.num_pending if piece is None else 0
        return piece


def test_each_of_many_bytes_without_a_character_is_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    stray = tokenizer.encode("🎉", add_special_tokens=False)[-1]
    assert tokenizer.decode([stray] * 5) == "\ufffd" * 5
    for number in (1, 3, 4, 5, 9):
        assert token_pieces(tokenizer, [stray] * number) == ["\ufffd"] * number
    monkeypatch.setattr(rl.chat.pieces, "DecodeStream", CountingStream)
    monkeypatch.setattr(CountingStream, "decoded", [])
    assert token_pieces(tokenizer, [stray] * 1000) == ["\ufffd"] * 1000
    assert sum(CountingStream.decoded) <= 10 * 1000  # 1 + 2 + 3 + 4 for each token, however many there are


def test_joined_pieces_are_the_decoded_text_of_any_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    chosen = random.Random(0)
    parts = tokenizer.encode("é世🎉🎉a\ufffd", add_special_tokens=False)
    assert len(parts) > 8
    for _ in range(300):
        token_ids = chosen.choices(parts, k=chosen.randrange(1, 30))
        pieces = token_pieces(tokenizer, token_ids)
        assert len(pieces) == len(token_ids)
        assert "".join(pieces) == tokenizer.decode(token_ids), token_ids


def test_a_character_after_stray_bytes_is_whole(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    party = tokenizer.encode("🎉", add_special_tokens=False)
    expected = ["\ufffd"] * 6 + [""] * (len(party) - 1) + ["🎉"]
    pieces = token_pieces(tokenizer, [party[-1]] * 6 + party)
    assert "".join(pieces) == "".join(expected)
    assert pieces[-1].endswith("🎉")
