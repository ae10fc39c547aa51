"""Checks of the recording that a run replays, before it starts any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl.chat.pieces import token_pieces
from rl.config.problems import Problem, error, warning
from rl.config.schema import Config
from rl.errors import DataError, ModelError, TurnwiseError
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import TokenRecord, read_sampled_rows
from rl.rollout.dialog import configured_tokenizer
from rl.rollout.replay import RecordedStep, find_recorded_steps, read_groups

_KEY = "megatron_training.replay"


def replay_problems(config: Config) -> Iterator[Problem]:
    """Check the recording that `megatron_training.replay` names: its files, and whether its tokens are the model's."""
    try:
        steps = find_recorded_steps(Path(config.megatron_training.replay or ""))
        read_groups(steps[0])
        rows = read_sampled_rows(steps[0].tokens, first_group=True)
    except DataError as failure:
        yield error(f"{_KEY}: {failure}")
        return
    yield from _step_problems(config, steps)
    with suppress(ModelError):  # the check of the model reports it
        yield from _token_problems(configured_tokenizer(config), rows)
    yield from _temperature_problems(config, RunDirectory(steps[0].tokens.parent.parent))


def _step_problems(config: Config, steps: Sequence[RecordedStep]) -> Iterator[Problem]:
    first = steps[0].place.step + 1
    if first > config.megatron_training.train_iters:
        yield error(
            f"megatron_training.train_iters: must be at least {first}, the first recorded step, got "
            f"{config.megatron_training.train_iters}. Raise it: steps keep the numbers they had when recorded."
        )


def _token_problems(tokenizer: PreTrainedTokenizerFast, rows: Sequence[TokenRecord]) -> Iterator[Problem]:
    """Compare the recorded text of the first row's tokens with what the model's tokenizer makes of them."""
    if not rows:
        return
    row = rows[0]
    pieces = token_pieces(tokenizer, row.token_ids)
    for position, (token, recorded, ours) in enumerate(zip(row.token_ids, row.pieces, pieces, strict=True)):
        if recorded != ours:
            yield error(
                f"{_KEY}: was recorded with another tokenizer: token {token}, at position {position} of "
                f"{row.trajectory_id}, is {recorded!r} there and {ours!r} here. Set the model that sampled it in "
                "actor_config.load."
            )
            return


def _temperature_problems(config: Config, run: RunDirectory) -> Iterator[Problem]:
    """Recorded log-probs are those of the temperature they were sampled with."""
    try:
        recorded = run.read_config().generate_config.sampling_config.temperature
    except TurnwiseError:  # of another version, perhaps
        return
    ours = config.generate_config.sampling_config.temperature
    if recorded != ours:
        yield warning(
            f"generate_config.sampling_config.temperature: the recorded tokens were sampled with {recorded:g}, got "
            f"{ours:g}, so the engine's log-probs are of another distribution. Set {recorded:g}."
        )
