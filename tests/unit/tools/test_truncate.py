import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rl.tools.truncate import truncate_tokens


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["...(truncated)...", "the value of the sum is", "error error error"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_truncate_tokens_leaves_a_text_that_fits(bytewise):
    assert truncate_tokens("0123456789", bytewise, 10, "left") == ("0123456789", False)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("left", "0123456...(truncated)"),  # 21 tokens: 14 of the marker, 7 kept
        ("right", "(truncated)...3456789"),
        ("middle", "01...(truncated)...89"),  # 17 of the marker, 4 kept
    ],
)
def test_truncate_tokens_keeps_the_named_part(bytewise, side, expected):
    text = "0123456789" + "x" * 30 + "0123456789"
    assert truncate_tokens(text, bytewise, 21, side) == (expected, True)


def test_truncate_tokens_drops_the_marker_where_it_does_not_fit(bytewise):
    assert truncate_tokens("0123456789", bytewise, 3, "left") == ("012", True)
    assert truncate_tokens("0123456789", bytewise, 3, "right") == ("789", True)
    assert truncate_tokens("0123456789", bytewise, 3, "middle") == ("019", True)


def test_truncate_tokens_is_the_same_for_very_long_texts(bytewise):
    text = "0123456789" + "x" * 100_000 + "0123456789"
    assert truncate_tokens(text, bytewise, 21, "middle") == ("01...(truncated)...89", True)
    assert truncate_tokens(text, bytewise, 21, "right") == ("(truncated)...3456789", True)


def test_truncate_tokens_to_nothing(bytewise):
    assert truncate_tokens("abc", bytewise, 0, "middle") == ("", True)
    assert truncate_tokens("", bytewise, 0, "middle") == ("", False)


def test_truncate_tokens_counts_special_tokens_as_the_text_they_are(bytewise):
    tokenizer = copy.deepcopy(bytewise)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    assert truncate_tokens("<|im_end|>" * 2, tokenizer, 9, "left") == ("<|im_end|", True)


def test_truncate_tokens_never_splits_a_character(bytewise):
    assert truncate_tokens("é" * 4, bytewise, 3, "left") == ("é", True)  # two tokens a character
    assert truncate_tokens("é" * 4, bytewise, 3, "right") == ("é", True)
    assert truncate_tokens("日本", bytewise, 2, "left") == ("", True)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.integers(1, 40), st.sampled_from(["left", "right", "middle"]))
def test_truncate_tokens_holds_the_cap_and_the_ends(tokenizer, text, max_tokens, side):
    kept, is_cut = truncate_tokens(text, tokenizer, max_tokens, side)
    assert count(tokenizer, kept) <= max_tokens
    assert is_cut == (count(tokenizer, text) > max_tokens)
    if not is_cut:
        assert kept == text
