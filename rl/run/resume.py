"""Checks of a checkpoint before the run that resumes it starts any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from rl.config.model_facts import find_model_facts, head_size, read_model_facts
from rl.config.model_folder import replacement
from rl.config.problems import Problem, error
from rl.config.schema import Config, ModelConfig
from rl.data.cursor import PromptCursor
from rl.errors import CheckpointError, DataError, ModelError
from rl.observability.run_directory import RunDirectory
from rl.rollout.buffer import GroupBuffer
from rl.run.checkpoints import checkpoint_damages, find_checkpoint, read_state
from rl.training.families import family_of
from rl.training.hf_files import open_tensors
from rl.training.trainer_state import folders_of
from rl.types import Prompt

_SHAPES = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
"""Facts that determine the shapes of the tensors."""
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""Raised when a state file has a value of an unexpected type or structure."""


def resume_problems(config: Config, command: Literal["train", "sft", "replay", "serve"]) -> Iterator[Problem]:
    """Check the checkpoint that `megatron_training.resume` names, if any, for damage and against the configuration.

    `check_place` checks the seed and the training rows, since it has the rows.

    Args:
        config: A validated configuration.
        command: The command that resumes it; a replay needs no place in the data.
    """
    if not config.megatron_training.resume:
        return
    try:
        checkpoint = find_checkpoint(Path(config.megatron_training.resume))
    except CheckpointError as failure:
        yield error(str(failure))
        return
    damages = checkpoint_damages(checkpoint)
    yield from (error(f"megatron_training.resume: {damage}") for damage in damages)
    if damages:
        return
    try:
        state = read_state(checkpoint)
        RunDirectory(checkpoint.parent.parent).read_metrics()
    except (CheckpointError, DataError) as failure:
        yield error(f"megatron_training.resume: {failure}")
        return
    yield from _place_problems(config, command, checkpoint, state)
    yield from _model_problems(config, checkpoint)


def why_ended(config: Config, checkpoint: Path) -> str:
    """Say that a checkpoint is the end of its run under this configuration.

    Returns:
        A sentence that names the checkpoint; empty if steps are left, or if it has no place in the data.
    """
    state = read_state(checkpoint)
    if ended := _train_iters_ended(config, checkpoint, state):
        return ended
    with suppress(*_MALFORMED):  # of a replay, for example; `resume_problems` says what is malformed
        return _total_epochs_ended(config, checkpoint, state)
    return ""


def check_place(config: Config, rows: PromptCursor, prompts: Sequence[Prompt] = ()) -> None:
    """Reject a checkpoint with another seed or other training rows, or whose place in the data cannot be read.

    Args:
        config: The run's configuration.
        rows: The run's cursor at its start; moved to the checkpoint's place.
        prompts: Prompts of reinforcement learning, for the surplus groups.

    Raises:
        CheckpointError: Seed or rows differ from the checkpoint's, or its place cannot be read.
    """
    if not config.megatron_training.resume:
        return
    checkpoint = find_checkpoint(Path(config.megatron_training.resume))
    data = read_state(checkpoint)["data"]
    try:
        rows.load_state_dict(data.get("cursor", data))
        if "buffer" in data:
            GroupBuffer(None).load_state_dict(data["buffer"], prompts, keep=lambda value: value)
    except _MALFORMED as failure:
        raise CheckpointError(f"megatron_training.resume: {_unreadable(checkpoint, failure)}") from failure


def check_weights(folder: Path, facts: ModelConfig, tensors: Path | None = None) -> None:
    """Check that each tensor of the model family exists and has the shape that config.json implies.

    Args:
        folder: A Hugging Face model folder.
        facts: The facts of its config.json.
        tensors: The folder of the tensors, if different.

    Raises:
        ModelError: A file is missing or corrupt, or a tensor is missing or has another shape.
    """
    tensors = tensors or folder
    hf_config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    rules = family_of(hf_config).rules(is_tied=hf_config.tie_word_embeddings)
    names = {name.format(layer=layer) for layer in range(facts.num_hidden_layers) for rule in rules for name in rule.hf}
    sizes = {
        "embed_tokens": (facts.vocab_size, facts.hidden_size),
        "q_proj": (facts.num_attention_heads * head_size(facts), facts.hidden_size),
        "k_proj": (facts.num_key_value_heads * head_size(facts), facts.hidden_size),
        "up_proj": (facts.intermediate_size, facts.hidden_size),
    }
    with ExitStack() as stack:
        read = open_tensors(tensors, stack)
        for name in sorted(names):
            found = tuple(read(name).shape)  # a view of the mapped file
            wanted = sizes.get(name.split(".")[-2], found)
            if name.endswith(".weight") and found != wanted:
                raise ModelError(
                    f"{tensors}: {name}: config.json says {wanted}, got {found}. Config and weights are of different "
                    f"models. {replacement(tensors)}"
                )


def _place_problems(config: Config, command: str, checkpoint: Path, state: dict[str, Any]) -> Iterator[Problem]:
    """Check the command, and whether any step is left."""
    data = state["data"]
    if ended := _train_iters_ended(config, checkpoint, state):
        yield error(f"megatron_training.resume: nothing is left to do: {ended} Raise that to go on.")
    if command == "replay":
        return
    if "replayed" in data:
        yield error(
            f"megatron_training.resume: {checkpoint} was written by a replay, which has no place in the data. Resume "
            "it with megatron_training.replay; to start from its weights, set actor_config.load to it instead."
        )
        return
    try:
        wrote = "serve" if "served" in data else "train" if "cursor" in data else "sft"
        ended = "" if wrote == "serve" else _total_epochs_ended(config, checkpoint, state)
    except _MALFORMED as failure:
        yield error(f"megatron_training.resume: {_unreadable(checkpoint, failure)}")
        return
    if wrote != command:
        yield error(
            f"megatron_training.resume: {checkpoint} was written by `rl {wrote}`, got `rl {command}`. Resume it with "
            f"that command; to start from its weights, set actor_config.load to it instead."
        )
        return
    if ended:
        yield error(f"megatron_training.resume: nothing is left to do: {ended} Raise that to go on.")


def _train_iters_ended(config: Config, checkpoint: Path, state: dict[str, Any]) -> str:
    train_iters = config.megatron_training.train_iters
    if state["step"] < train_iters:
        return ""
    return f"{checkpoint} is of step {state['step']}, and the run ends after train_iters, {train_iters}."


def _total_epochs_ended(config: Config, checkpoint: Path, state: dict[str, Any]) -> str:
    data, total_epochs = state["data"], config.megatron_training.total_epochs
    cursor, surplus = data.get("cursor", data), data.get("buffer", {}).get("surplus")
    taken = cursor["epoch"] * cursor["num_prompts"] + cursor["position"]
    if total_epochs is None or taken < total_epochs * cursor["num_prompts"] or surplus:
        return ""
    return f"{checkpoint} has used up total_epochs, {total_epochs}."


def _unreadable(checkpoint: Path, failure: Exception) -> str:
    first_line = repr(failure).splitlines()[0]
    return f"{checkpoint}: its place in the data cannot be read ({first_line}). {replacement(checkpoint)}"


def _model_problems(config: Config, checkpoint: Path) -> Iterator[Problem]:
    """Compare the architecture with that of `actor_config.load`, and check every tensor."""
    facts, _ = find_model_facts(config)
    try:
        found = read_model_facts(checkpoint)
        if facts is not None:
            ours, theirs = asdict(facts), asdict(found)
            if differing := [name for name in _SHAPES if ours[name] != theirs[name]]:
                yield error(
                    "actor_config.load: the run to resume has another model: "
                    + ", ".join(f"{name} {theirs[name]}, got {ours[name]}" for name in differing)
                    + ". Set the model it started from."
                )
                return
        for tensors in folders_of(checkpoint):
            check_weights(checkpoint, found, tensors)
    except ModelError as failure:
        yield error(f"megatron_training.resume: {failure}")
