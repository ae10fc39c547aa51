"""Checks of the recording that a run replays, before it starts any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl.chat.pieces import token_pieces
from rl.config.problems import Problem, error, warning
from rl.config.schema import Config
from rl.errors import CheckpointError, DataError, ModelError, TurnwiseError
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import TokenRecord, read_sampled_rows, read_version
from rl.rollout.dialog import configured_tokenizer
from rl.rollout.replay import RecordedStep, find_recorded_steps, read_groups
from rl.run.checkpoints import find_checkpoint, read_state
from rl.types import NOT_SAMPLED

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
    with suppress(CheckpointError, DataError):  # the checks of the resume, and of the step when it is read
        yield from _weights_problems(config, steps)
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


def _weights_problems(config: Config, steps: Sequence[RecordedStep]) -> Iterator[Problem]:
    """Compare the weights that sampled each step with those that the replay will have, which makes one update a step.

    Without the updates between two recorded steps, log-probs and ratios of the later one are of another policy.
    """
    resume = config.megatron_training.resume
    start = int(read_state(find_checkpoint(Path(resume)))["step"]) if resume else 0
    replayed = [s for s in steps if start <= s.place.step < config.megatron_training.train_iters]
    for expected, step in enumerate(replayed, start):
        version = read_version(step.tokens)
        if version not in (expected, NOT_SAMPLED):
            checkpoint = RunDirectory(step.tokens.parent.parent).checkpoint(version)
            place = f"megatron_training.resume={checkpoint}" if version > 0 else "megatron_training.resume=null"
            yield warning(
                f"{_KEY}: step {step.place.step + 1} was sampled with the weights after step {version}, got those "
                f"after {expected} updates, so its log-probs and ratios are of another policy. Set {place} to begin "
                "there, or record every step (record_tokens_every=1)."
            )
            return


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
