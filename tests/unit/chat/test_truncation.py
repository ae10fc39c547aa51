import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rl.chat import truncation
from rl.chat.encoding import TextEncoder


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


def truncate_tokens(text, tokenizer, max_tokens, side):
    return truncation.truncate_tokens(text, TextEncoder(tokenizer).offsets, max_tokens, side)


def count(tokenizer, text):
    encoder = TextEncoder(tokenizer)
    return len(encoder.encode(encoder.break_up(text)))


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


def test_truncate_tokens_keeps_marks_with_what_they_belong_to(bytewise):
    assert truncate_tokens("ae\u0301", bytewise, 2, "left") == ("a", True)  # the accent has two tokens of its own
    assert truncate_tokens("e\u0301a", bytewise, 3, "right") == ("a", True)
    family = "\U0001f469\u200d\U0001f4bb"
    assert truncate_tokens(family + "a", bytewise, 8, "left") == ("", True)
    assert truncate_tokens("a\r\nb", bytewise, 2, "left") == ("a", True)


def test_truncate_tokens_counts_added_tokens_as_the_text_they_are(bytewise):
    tokenizer = copy.deepcopy(bytewise)
    tokenizer.add_tokens(["<tool_call>"])
    assert truncate_tokens("<tool_call>" * 2, tokenizer, 12, "left") == ("<tool_call><", True)


MARKERS = {"left": "...(truncated)", "right": "(truncated)...", "middle": "...(truncated)..."}
PIECES = [
    "the value",
    " of the sum",
    "error ",
    "<|im_end|>",
    "<tool",
    "_call>",
    "\n",
    "é",
    "e\u0301",
    "日本",
    "🙂",
    "👩\u200d💻",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=30).map("".join)


@settings(max_examples=1000, deadline=None)
@given(texts, st.integers(0, 60), st.sampled_from(["left", "right", "middle"]))
def test_truncate_tokens_holds_the_cap_and_the_ends(tokenizer, text, max_tokens, side):
    tokenizer = copy.copy(tokenizer)
    kept, is_cut = truncate_tokens(text, tokenizer, max_tokens, side)
    assert count(tokenizer, kept) <= max_tokens
    assert is_cut == (count(tokenizer, text) > max_tokens)
    if not is_cut:
        assert kept == text
        return
    head, marker, tail = kept.partition(MARKERS[side])
    if not marker:
        return
    assert text.startswith(head)
    assert text.endswith(tail)
    assert not any(
        part and truncation._continues(text, i) for part, i in ((head, len(head)), (tail, len(text) - len(tail)))
    )
    assert (side != "left" or not tail) and (side != "right" or not head)


@settings(max_examples=300, deadline=None)
@given(st.text("ab c\n", min_size=60, max_size=200), st.integers(20, 50), st.sampled_from(["left", "right", "middle"]))
def test_truncate_tokens_keeps_as_much_as_fits(bytewise, text, max_tokens, side):
    kept, _ = truncate_tokens(text, bytewise, max_tokens, side)
    assert count(bytewise, kept) == max_tokens  # a token a character: nothing is given away
