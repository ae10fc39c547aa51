"""Loading of prompts from a data file."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rl.data.columns import answer_value, complete_map, prompt_messages
from rl.data.messages import ground_truth_text
from rl.data.rows import is_columnar, iter_rows
from rl.errors import CheckpointError, DataError, ModelError
from rl.types import Message, Prompt

logger = logging.getLogger(__name__)

COLUMNS = ("messages", "ground_truth", "data_source")
"""What every row is reduced to; its other columns are for rewards and tools."""


class _PromptRenderer(Protocol):
    def render_prompt(self, messages: list[Message]) -> list[int]: ...


def load_prompts(
    path: str | Path,
    additional_keys: Sequence[str] = (),
    evaluation_set: str | None = None,
    *,
    needs_answer: bool = True,
) -> list[Prompt]:
    """Read rows of `rl.data.preprocess`, or of another schema that `rl.data.columns` knows.

    `messages` may be a list of records or JSON text. A ground truth that is not text becomes JSON text. Columns other
    than the prompt's and `COLUMNS` go to `Prompt.extra`. Without `data_source` it is the file's stem.

    Args:
        path: A file or folder that `iter_rows` reads.
        additional_keys: Extra required columns. `labels`, MindSpeed-RL's name for the ground truth, is ignored.
        evaluation_set: Name of the set that the file is; it takes the place of the file's stem in ids.
        needs_answer: Rows must have a ground truth; otherwise it may be missing, as in demonstrations.

    Returns:
        At least one prompt, in the order of the file.

    Raises:
        DataError: The file is missing, empty or of another type, or a row is malformed; the message has the row number,
            from 1.
    """
    path = Path(path)
    required = [key for key in additional_keys if key != "labels"]
    return [
        _to_prompt(path, number, row, required, evaluation_set, needs_answer=needs_answer)
        for number, row in iter_rows(path)
    ]


def id_in_epoch(row_id: str, epoch: int) -> str:
    """Id of a row in one epoch (from 0): `train-7` in the first, `train-7@2` in the third.

    A batch across the end of an epoch may contain a row twice. Their ids differ, and so do the ids derived from them
    (trajectories, groups, sessions) and the sampling seeds.
    """
    return f"{row_id}@{epoch}" if epoch else row_id


def row_of(name: str) -> str:
    """Reverse `id_in_epoch`: `train-7@2` becomes `train-7`. Plain row ids end in a row number, never in `@`."""
    return re.sub(r"@\d+$", "", name)


def prompt_with_id(name: str, rows: Mapping[str, Prompt]) -> Prompt:
    """The prompt that a checkpoint names.

    Args:
        name: From `id_in_epoch`.
        rows: The data's prompts by id.

    Raises:
        CheckpointError: The data has no such row.
    """
    if row_of(name) not in rows:
        raise CheckpointError(
            f"megatron_training.data_path: must hold the rows of the run to resume, got none for '{name}'. Resume with "
            "its data file."
        )
    return replace(rows[row_of(name)], id=name)


def drop_long_prompts(
    prompts: Sequence[Prompt], renderer: _PromptRenderer, max_prompt_length: int
) -> tuple[list[Prompt], int]:
    """Drop prompts that are too long.

    Args:
        prompts: All prompts of a file.
        renderer: Renders prompts to tokens, with tool schemas and generation header.
        max_prompt_length: Tokens, inclusive.

    Returns:
        The prompts of at most `max_prompt_length` tokens, in order, and the number of dropped prompts.

    Raises:
        DataError: No prompt is left, or the chat template rejects one.
    """
    lengths = [_length(prompt, renderer) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_prompt_length]
    num_dropped = len(prompts) - len(kept)
    if not kept:
        shortest = f"the shortest has {min(lengths)} tokens" if lengths else "there are none"
        raise DataError(
            f"rl_config.max_prompt_length: no prompt has at most {max_prompt_length} tokens, {shortest}. "
            "Raise the limit, or check data_path and prompt_type."
        )
    if num_dropped:
        logger.warning(
            "dropped %d of %d prompts with more than rl_config.max_prompt_length = %d tokens.",
            num_dropped, len(prompts), max_prompt_length,
        )  # fmt: skip
    return kept, num_dropped


def _length(prompt: Prompt, renderer: _PromptRenderer) -> int:
    try:
        return len(renderer.render_prompt(prompt.messages))
    except ModelError as error:
        raise DataError(f"row {prompt.id}: {error}") from error


def _to_prompt(
    path: Path,
    number: int,
    row: dict[str, Any],
    required: Sequence[str],
    evaluation_set: str | None,
    *,
    needs_answer: bool,
) -> Prompt:
    where = f"{path}, row {number}"
    columns = complete_map(where, row, {}, needs_answer=needs_answer)
    for key in required:
        if row.get(key) is None:
            got = "null" if key in row else f"columns {', '.join(row) or 'none'}"
            raise DataError(f"{where}: column '{key}' must have a value, got {got}. Run `python -m rl preprocess`.")
    source = row.get("data_source")
    return Prompt(
        id=f"{evaluation_set or path.stem}-{number}",
        messages=prompt_messages(where, row, columns["prompt"], has_filler=is_columnar(path)),
        ground_truth=ground_truth_text(answer_value(where, row, columns["response"])),
        data_source=path.stem if source is None else str(source),
        extra={key: value for key, value in row.items() if key not in (columns["prompt"], *COLUMNS)},
        evaluation_set=evaluation_set,
    )
