"""Makes the token lengths of a converted configuration fit each other, and says what was changed."""

from __future__ import annotations

from rl.migrate.draft import Draft

_MODEL_LEN = "generate_config.max_model_len"
_MAX_TOKENS = "generate_config.sampling_config.max_tokens"
_TOTAL = "rl_config.max_total_response_length"


def fit_lengths(draft: Draft) -> None:
    """Bound a turn by the trajectory, and let the engine hold prompt and response.

    With several turns `max_tokens` is at most `max_total_response_length`; `max_model_len` is at least
    `max_prompt_length` plus the longest response.
    """
    is_multi_turn = draft.value("rl_config.multi_turn_enable") is True
    keys = (_MAX_TOKENS, _TOTAL, "rl_config.max_prompt_length", _MODEL_LEN)
    if not all(isinstance(draft.value(key), int) for key in keys):
        return  # `Draft.finish` takes such values out
    turn, total, prompt, limit = map(draft.value, keys)
    if is_multi_turn and total < turn:
        draft.put(_MAX_TOKENS, total, _MAX_TOKENS, comment=f"one turn fits into max_total_response_length; was {turn}")
        turn = total
    elif is_multi_turn:
        draft.note(_MAX_TOKENS, "tokens of one turn")
    longest = prompt + (total if is_multi_turn else turn)
    if limit < longest:
        comment = f"holds the longest prompt and response; was {limit}"
        draft.put(_MODEL_LEN, longest, _MODEL_LEN, comment=comment)
    elif not is_multi_turn:
        draft.lines.pop(_TOTAL, None)
        if draft.kept.pop(_TOTAL, None) is not None:
            draft.drop(_TOTAL, "It counts only with multi_turn_enable; max_tokens limits the only turn.")
