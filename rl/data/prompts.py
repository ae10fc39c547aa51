"""Prompts from a data file, and the shuffled, resumable order in which a run consumes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl.errors import CheckpointError, DataError
from rl.types import Message, Prompt

logger = logging.getLogger(__name__)

COLUMNS = ("messages", "ground_truth", "data_source")
"""Columns every row has."""
ROLES = ("system", "user", "assistant", "tool")
"""Roles a message may have."""


class _PromptRenderer(Protocol):
    def render_prompt(self, messages: list[Message]) -> list[int]: ...


def load_prompts(path: str | Path, additional_keys: Sequence[str] = ()) -> list[Prompt]:
    """Read the rows that `rl.data.preprocess` writes.

    `messages` may be a list of message structs or their JSON text; a ground truth that is no text is kept as JSON.
    Columns beyond `COLUMNS` go to `Prompt.extra`.

    Args:
        path: A .parquet, .jsonl or .json file.
        additional_keys: Extra columns each row must have. `labels`, MindSpeed-RL's name of the ground truth, is
            taken to be there.

    Returns:
        At least one prompt, in the order of the file.

    Raises:
        DataError: The file is missing, empty or of another type, or a row is malformed; says which row, from 1.
    """
    path = Path(path)
    required = [key for key in additional_keys if key != "labels"]
    return [_to_prompt(path, number, row, required) for number, row in iter_rows(path)]


def iter_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table file row by row.

    Args:
        path: .parquet; .jsonl, one object a line, blank lines skipped; or .json, a list of objects.

    Yields:
        Number of the row, from 1 (of the line, in a .jsonl file), and the row; at least one.

    Raises:
        DataError: The file is missing, unreadable, empty or of another type, or a row is no object.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such data file. Run `python -m rl preprocess`, or correct the path.")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json}
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown file type '{path.suffix}'. Give one of {', '.join(readers)}.")
    is_empty = True
    try:
        for number, row in readers[path.suffix](path):
            if not isinstance(row, dict):
                raise DataError(f"{path}, row {number}: must be an object, got {_shorten(row)}. Correct the row.")
            is_empty = False
            yield number, row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from error
    if is_empty:
        raise DataError(f"{path}: the file has no rows. Check what wrote it.")


def id_in_epoch(row_id: str, epoch: int) -> str:
    """Name of a row at one of its visits: `train-7` in the first epoch, `train-7@2` in the third.

    What is named after it stays apart when a batch reaches over an epoch's end and meets a row twice: trajectories,
    groups, sessions, and the noise each request is sampled with.

    Args:
        row_id: `Prompt.id` as loaded.
        epoch: From 0.
    """
    return f"{row_id}@{epoch}" if epoch else row_id


def check_messages(where: str, messages: Any) -> list[Message]:
    """Check the form of a conversation and drop the null fields that a columnar file fills in.

    Args:
        where: File and row, for the error.
        messages: What should be a list of messages.

    Returns:
        The messages without null fields.

    Raises:
        DataError: It is not a non-empty list of messages with a known role, text content and well-formed calls.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: `messages` must be a non-empty list, got {_shorten(messages)}. Correct the row.")
    checked: list[Message] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise DataError(f"{where}: message {index} must be an object, got {_shorten(message)}. Correct the row.")
        message = _without_nulls(message)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(
                f"{where}: message {index} has role {role!r}. Use one of {', '.join(ROLES)}, as OpenAI's messages do."
            )
        has_calls = role == "assistant" and bool(message.get("tool_calls"))
        if not isinstance(content, str) and not (content is None and has_calls):
            raise DataError(f"{where}: message {index} must have text content, got {_shorten(content)}. Correct it.")
        if has_calls and not (isinstance(calls := message["tool_calls"], list) and all(map(_is_call, calls))):
            raise DataError(
                f"{where}: message {index} has tool_calls {_shorten(calls)}. Write a list of "
                '{"type": "function", "function": {"name": TEXT, "arguments": OBJECT}}.'
            )
        checked.append(message)
    return checked


def ground_truth_text(value: Any) -> str:
    """A ground truth as text: a text as it is, everything else as JSON.

    Numbers in a list become texts, so that `[1, 2]`, two accepted answers, stays apart from the text `[1, 2]`, an interval.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        is_number = [isinstance(item, int | float) and not isinstance(item, bool) for item in value]
        value = [str(item) if number else item for item, number in zip(value, is_number, strict=True)]
    return json.dumps(value, ensure_ascii=False, default=str)


def drop_long_prompts(
    prompts: Sequence[Prompt], renderer: _PromptRenderer, max_prompt_length: int
) -> tuple[list[Prompt], int]:
    """Keep the prompts that fit.

    Args:
        prompts: All prompts of a file.
        renderer: Tells how many tokens a prompt has, tool schemas and generation header included.
        max_prompt_length: Tokens, inclusive.

    Returns:
        The prompts of at most `max_prompt_length` tokens, in order, and the number of those dropped.

    Raises:
        DataError: None is left.
    """
    lengths = [len(renderer.render_prompt(prompt.messages)) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_prompt_length]
    num_dropped = len(prompts) - len(kept)
    if not kept:
        shortest = f"the shortest has {min(lengths)} tokens" if lengths else "there are none"
        raise DataError(
            f"rl_config.max_prompt_length: no prompt has at most {max_prompt_length} tokens, {shortest}. "
            "Raise it, or check data_path and prompt_type."
        )
    if num_dropped:
        logger.warning(
            "dropped %d of %d prompts, which have more than rl_config.max_prompt_length tokens, %d.",
            num_dropped, len(prompts), max_prompt_length,
        )  # fmt: skip
    return kept, num_dropped


class PromptCursor:
    """The order in which prompts are consumed: a fresh permutation each epoch, a function of (seed, epoch) alone.

    Example: of 3 prompts, `take(2)` and `take(2)` give four indices; the fourth is the first of the second epoch.
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        if num_prompts < 1:
            raise DataError(f"PromptCursor: needs at least one prompt, got {num_prompts}. Check the data file.")
        self._num_prompts = num_prompts
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._permutation()

    @property
    def epoch(self) -> int:
        """Completed passes over the prompts."""
        return self._epoch

    def take(self, num: int) -> list[int]:
        """Advance by `num` prompts, into the next epoch where this one ends.

        Returns:
            `num` indices below `num_prompts`.
        """
        return [index for index, _ in self.take_with_epochs(num)]

    def take_with_epochs(self, num: int) -> list[tuple[int, int]]:
        """Advance as `take` does.

        Returns:
            `num` pairs of an index and the epoch it was met in, from 0; no pair comes twice in a run.
        """
        taken: list[tuple[int, int]] = []
        while len(taken) < num:
            end = min(self._position + num - len(taken), self._num_prompts)
            taken.extend((index, self._epoch) for index in self._order[self._position : end])
            self._position = end
            if end == self._num_prompts:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._permutation()
        return taken

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {
            "num_prompts": self._num_prompts,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: It was taken of another number of prompts or another seed; the order would differ.
        """
        for key, own in (("num_prompts", self._num_prompts), ("seed", self._seed)):
            if state[key] != own:
                raise CheckpointError(
                    f"PromptCursor: the checkpoint was made with {key} {state[key]}, got {own}. "
                    "Resume with the same data file, max_prompt_length and seed."
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        generator = np.random.default_rng((self._seed, self._epoch))
        return [int(index) for index in generator.permutation(self._num_prompts)]


def _to_prompt(path: Path, number: int, row: dict[str, Any], required: Sequence[str]) -> Prompt:
    where = f"{path}, row {number}"
    for key in (*COLUMNS, *required):
        if row.get(key) is None:
            got = "null" if key in row else f"columns {', '.join(row) or 'none'}"
            raise DataError(f"{where}: needs a value in column '{key}', got {got}. Run `python -m rl preprocess`.")
    messages, truth = row["messages"], row["ground_truth"]
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: `messages` is text but not JSON ({error}). Correct the row.") from error
    return Prompt(
        id=f"{path.stem}-{number}",
        messages=check_messages(where, messages),
        ground_truth=ground_truth_text(truth),
        data_source=str(row["data_source"]),
        extra={key: value for key, value in row.items() if key not in COLUMNS},
    )


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        batches = pq.ParquetFile(path).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error}). Write it again.") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Rows end at "\n" alone: a line separator inside a JSON string (U+2028) is no end of a row.
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, row {number}: not JSON ({error}), got {_shorten(line)}. Correct it."
                ) from error


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8") or "[]")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}). One object a line is .jsonl.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: must be a list of objects, got {type(rows).__name__}. Use .jsonl or a list.")
    yield from enumerate(rows, start=1)


def _is_call(call: Any) -> bool:
    """Whether chat templates can render it; arguments may be an object's JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return False
    return isinstance(arguments, dict)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
