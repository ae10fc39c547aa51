"""Prompts of token ids and of text go on from the tokens that were sampled, not from others that say the same."""

from __future__ import annotations

from rl.chat.ledger import Ledger
from rl.chat.renderer import Renderer
from rl.types import Message, TokenSequence
from tests.chat_templates import CHATML, byte_level

RENDERER = Renderer(byte_level(CHATML), "empty", [])
END = RENDERER.close_turn_ids[-1]
QUESTION: Message = {"role": "user", "content": "What is 1 + 2?"}


def ids(text: str) -> list[int]:
    return RENDERER.encoder.encode_whole(text)


def spelled(text: str) -> list[int]:
    """The text in single bytes: other tokens than the tokenizer's own where it has merges."""
    return [token for byte in text for token in ids(byte)]


def sample(ledger: Ledger, sequence: TokenSequence, turn: list[int], told: str) -> None:
    sequence.append_sampled(turn, [-0.5] * len(turn), 0)
    ledger.record(sequence, {"role": "assistant", "content": told})


def begin(turn: list[int], told: str, prompt: str = "Once") -> tuple[Ledger, TokenSequence]:
    ledger = Ledger(RENDERER)
    sequence, _ = ledger.apply(ledger.plan_text(prompt))
    sample(ledger, sequence, turn, told)
    return ledger, sequence


def test_ids_that_begin_with_a_known_turn_go_on_from_it():
    ledger = Ledger(RENDERER)
    sequence, added = ledger.apply(ledger.plan_tokens([5, 6, 7]))
    assert added == [5, 6, 7]
    sample(ledger, sequence, [8, 9], "x")
    again, added = ledger.apply(ledger.plan_tokens([5, 6, 7, 8, 9, 10]))
    assert (again is sequence, added) == (True, [10])
    sample(ledger, sequence, [11], "y")
    assert sequence.token_ids.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert sequence.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 1]


def test_ids_that_end_within_a_turn_or_differ_begin_a_sequence():
    ledger = Ledger(RENDERER)
    sequence, _ = ledger.apply(ledger.plan_tokens([5, 6]))
    sample(ledger, sequence, [8, 9], "x")
    for prompt in ([5, 6, 8, 10], [5, 7, 8, 9], [5]):
        other, added = ledger.apply(ledger.plan_tokens(prompt))
        assert (other.token_ids.tolist(), other.loss_mask.sum(), added) == (prompt, 0, prompt)


def test_a_second_continuation_of_ids_copies_what_it_shares_as_context():
    ledger = Ledger(RENDERER)
    sequence, _ = ledger.apply(ledger.plan_tokens([5]))
    sample(ledger, sequence, [8, 9], "x")
    for token, name in ((10, "y"), (11, "z")):
        sequence, _ = ledger.apply(ledger.plan_tokens([5, 8, 9, token]))
        sample(ledger, sequence, [20], name)
    assert [s.token_ids.tolist() for s in ledger.sequences] == [[5, 8, 9, 10, 20], [5, 8, 9, 11, 20]]
    assert [s.loss_mask.tolist() for s in ledger.sequences] == [[0, 1, 1, 0, 1], [0, 0, 0, 0, 1]]
    assert ledger.response_length == 2 + 2 + 2


def test_a_turn_is_gone_on_with_nothing_between_once_at_a_time():
    ledger = Ledger(RENDERER)
    sequence, _ = ledger.apply(ledger.plan_tokens([5]))
    sample(ledger, sequence, [8], "x")
    first, added = ledger.apply(ledger.plan_tokens([5, 8]))
    second, _ = ledger.apply(ledger.plan_tokens([5, 8]))  # while the first is being sampled
    assert (first is sequence, added) == (True, [])
    assert (second is sequence, second.token_ids.tolist()) == (False, [5, 8])


def test_ids_go_on_from_a_chat_and_the_chat_goes_on_beside_them():
    ledger = Ledger(RENDERER)
    sequence, prompt = ledger.extend([QUESTION])
    sample(ledger, sequence, [*ids("3"), END], "3")
    context = [*prompt, *ids("3"), END, *ids(" And then?")]
    same, added = ledger.apply(ledger.plan_tokens(context))
    assert (same is sequence, added) == (True, ids(" And then?"))
    sample(ledger, same, [*ids("4"), END], "4")
    chat, _ = ledger.extend([QUESTION, {"role": "assistant", "content": "3"}, QUESTION])
    assert chat is not sequence
    assert chat.token_ids[: len(prompt) + 2].tolist() == [*prompt, *ids("3"), END]
    other, _ = ledger.extend([QUESTION, {"role": "assistant", "content": "3"}, {"role": "assistant", "content": "4"}])
    assert other is not sequence


def test_text_goes_on_from_the_sampled_ids_and_not_from_others_that_say_the_same():
    turn = spelled(" upon a time")
    assert turn != ids(" upon a time")
    ledger, sequence = begin(turn, " upon a time")
    again, added = ledger.apply(ledger.plan_text("Once upon a time there was"))
    assert again is sequence
    assert added == RENDERER.encoder.encode(" there was", behind=True)
    assert sequence.token_ids.tolist() == [*ids("Once"), *turn, *added]


def test_text_without_the_token_that_ended_a_turn_goes_on_before_it():
    turn = spelled(" upon")
    ledger, sequence = begin([*turn, END], " upon")
    again, _ = ledger.apply(ledger.plan_text("Once upon a time"))
    assert again is not sequence
    assert again.token_ids.tolist() == [*ids("Once"), *turn, *RENDERER.encoder.encode(" a time", behind=True)]
    assert again.num_sampled == 0
    sample(ledger, again, ids("."), ".")
    third, _ = ledger.apply(ledger.plan_text("Once upon a time. End"))
    assert third is again


def test_a_stop_string_is_kept_where_the_text_repeats_it():
    turn = spelled(" Look\nObservation:")
    for text, is_kept in (("Once Look\nObservation: 3", True), ("Once Look\n 3", False)):
        ledger, sequence = begin(turn, " Look\n")
        again, _ = ledger.apply(ledger.plan_text(text))
        assert (again is sequence) == is_kept
        kept = [*ids("Once"), *(turn if is_kept else spelled(" Look\n"))]
        found = again.token_ids.tolist()
        assert (found[: len(kept)], RENDERER.decode(found[len(kept) :])) == (kept, " 3")


def test_half_a_character_at_the_end_of_a_turn_is_kept():
    turn = ids("é")[:1] if len(ids("é")) > 1 else ids("é")
    told = RENDERER.decode(turn)
    ledger, sequence = begin(turn, told)
    again, _ = ledger.apply(ledger.plan_text(f"Once{told} more"))
    assert again is sequence


def test_other_text_begins_a_sequence_and_may_spell_special_tokens():
    ledger, sequence = begin(ids(" upon"), " upon")
    again, added = ledger.apply(ledger.plan_text("<|im_start|>Twice"))
    assert again is not sequence
    assert added[0] == RENDERER.tokenizer.convert_tokens_to_ids("<|im_start|>")
