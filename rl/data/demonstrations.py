"""Demonstrations for the cold start: whole conversations, trained on what the assistant says in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rl.batches import Sample
from rl.chat.demonstrations import render_demonstration
from rl.chat.renderer import Renderer
from rl.data.prompts import load_prompts
from rl.errors import DataError, ModelError


def load_demonstrations(path: Path, renderer: Renderer, max_length: int) -> list[Sample]:
    """Read conversations and render them to training rows.

    A row's `messages` hold the assistant's turns with `tool_calls`, and the `tool` messages that answer them.

    Args:
        path: A file with messages; a ground truth is not needed.
        renderer: The one of the rollouts, so that the model learns the form that it will meet.
        max_length: Longest row in tokens; a longer one is an error, since cutting it would hide its answer.

    Returns:
        Samples whose mask is 1 on the assistant's tokens, the end of each of its turns included; one for each row, or
        several where the chat template rewrites history. A rollout that says the same gives the same tokens.

    Raises:
        DataError: A file or row is malformed or too long, has nothing to learn from, or the chat template refuses it.
    """
    samples = []
    for prompt in load_prompts(path, needs_answer=False):
        where = f"{path}: row {prompt.id.rpartition('-')[2]}"
        if prompt.messages[0]["role"] == "assistant":
            raise DataError(f"{where} begins with the assistant. Put what it answers in front.")
        try:
            sequences = render_demonstration(renderer, prompt.messages)
        except ModelError as error:
            raise DataError(f"{where}: {error}") from error
        if not sequences:
            raise DataError(f"{where} has no assistant message, so nothing to learn from. Remove the row.")
        for token_ids, mask in sequences:
            if len(token_ids) > max_length:
                raise DataError(
                    f"{where} has {len(token_ids)} tokens, more than megatron_training.seq_length {max_length}. "
                    "Shorten it or raise the limit."
                )
            samples.append(_to_sample(prompt.id, token_ids, mask))
    return samples


def _to_sample(name: str, token_ids: list[int], mask: list[int]) -> Sample:
    loss_mask = np.array(mask, np.uint8)
    return Sample(
        trajectory_id=name,
        group_id=name,
        token_ids=np.array(token_ids, np.int32),
        loss_mask=loss_mask,
        advantages=loss_mask.astype(np.float32),
        rollout_logprobs=np.zeros(len(token_ids), np.float32),
    )
