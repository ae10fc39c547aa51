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
    assert any("🎉" in piece for piece in pieces)  # whole, in the last of its tokens


def test_an_incomplete_character_is_one_mark_and_no_part_of_an_added_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "model"))
    token_ids = tokenizer.encode("a🎉", add_special_tokens=False)[:-1]
    assert len(token_ids) > 2
    expected = ["a"] + [""] * (len(token_ids) - 2) + ["\ufffd"]
    assert token_pieces(tokenizer, token_ids) == expected
    (end,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert token_pieces(tokenizer, [*token_ids, end]) == [*expected, "<|im_end|>"]
