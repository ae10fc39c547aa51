from __future__ import annotations

from pathlib import Path

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
    assert "🎉" in pieces[-5:] or " 🎉" in pieces  # whole, in the last of its tokens


def test_an_incomplete_character_at_the_end_has_no_piece(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    token_ids = tokenizer.encode("a🎉", add_special_tokens=False)
    assert len(token_ids) > 2
    assert token_pieces(tokenizer, token_ids[:-1]) == ["a"] + [""] * (len(token_ids) - 2)
