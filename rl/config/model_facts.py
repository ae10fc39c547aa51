"""The model's architecture: from its folder if that exists, otherwise from the `model` section."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl.config.check import check_section
from rl.config.divisibility import head_groups_fault
from rl.config.keys import field_types
from rl.config.model_folder import replacement
from rl.config.problems import Problem, error, note
from rl.config.schema import Config, ModelConfig
from rl.errors import ModelError

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def find_model_facts(config: Config) -> tuple[ModelConfig | None, list[Problem]]:
    """Find the architecture of `actor_config.load`.

    Returns:
        The facts, or None if neither the folder nor the section has them; and a problem if the folder cannot be read,
        if both disagree (an error: one of them is not the intended model), or if there is neither.
    """
    section = config.model
    folder = Path(config.actor_config.load)
    has_section = all(getattr(section, name) > 0 for name in _SIZES)
    if not config.actor_config.load:
        return None, [error("actor_config.load: must name a model folder, got nothing. Set a Hugging Face folder.")]
    if not folder.is_dir():
        where = f"actor_config.load: no folder '{folder}' on this machine"
        if has_section:
            return _filled(section), [note(f"{where}; its architecture is taken from the `model` section.")]
        return None, [note(f"{where}, and no `model` section. Add `model: NAME` of configs/model to `defaults`.")]
    try:
        facts = read_model_facts(folder)
    except ModelError as failure:
        return None, [error(f"actor_config.load: {failure}")]
    return facts, _disagreements(config, section, facts)


def read_model_facts(folder: Path) -> ModelConfig:
    """Read config.json of a Hugging Face folder.

    Raises:
        ModelError: The file is missing, is not JSON, or lacks a size.
    """
    path = folder / "config.json"
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as failure:
        raise ModelError(f"{path}: no such file. Give a Hugging Face model folder.") from failure
    except (OSError, ValueError) as failure:
        raise ModelError(f"{path}: cannot be read, got {failure}. {replacement(folder)}") from failure
    if not isinstance(values, dict):
        raise ModelError(f"{path}: must hold one JSON object, got {type(values).__name__}. {replacement(folder)}")
    for name in _SIZES:
        if values.get(name) in (None, 0):
            raise ModelError(f"{path}: '{name}' must be an integer, got {values.get(name)!r}. Is it a language model?")
    known = {name: values[name] for name in field_types(ModelConfig) if values.get(name) is not None}
    section, problems = check_section(ModelConfig, known)
    facts = _filled(section)
    if not problems and (fault := head_groups_fault(facts)):
        problems = [error(fault)]
    for problem in problems:
        raise ModelError(f"{path}: {problem.text} Is it a language model?")
    return facts


def head_size(facts: Any) -> int:
    """Number of channels of one attention head, from a `ModelConfig` or a transformers config."""
    return getattr(facts, "head_dim", None) or facts.hidden_size // facts.num_attention_heads


def count_parameters(facts: ModelConfig) -> int:
    """Parameters of a dense decoder with gated MLP and RMS norms; without biases and q/k norms (under 0.1 %)."""
    embeddings = facts.vocab_size * facts.hidden_size * (1 if facts.tie_word_embeddings else 2)
    return facts.num_hidden_layers * count_layer_parameters(facts) + embeddings + facts.hidden_size


def count_layer_parameters(facts: ModelConfig) -> int:
    """Parameters of one layer: attention, gated MLP and two norms."""
    heads = (2 * facts.num_attention_heads + 2 * facts.num_key_value_heads) * head_size(facts)
    return facts.hidden_size * (heads + 3 * facts.intermediate_size + 2)


def _filled(facts: ModelConfig) -> ModelConfig:
    """Without a number of key-value heads, each attention head has its own."""
    return replace(facts, num_key_value_heads=facts.num_key_value_heads or facts.num_attention_heads)


def _disagreements(config: Config, section: ModelConfig, facts: ModelConfig) -> list[Problem]:
    """One problem for all disagreements, since they have one cause."""
    names = (*_SIZES, "num_key_value_heads", "model_type", "tie_word_embeddings")
    pairs = {name: (getattr(section, name), getattr(facts, name)) for name in names}
    differing = {name: pair for name, pair in pairs.items() if section.hidden_size and pair[0] and pair[0] != pair[1]}
    if not differing:
        return []
    listed = ", ".join(f"{name} {said} (there {found})" for name, (said, found) in differing.items())
    return [
        error(
            f"model: describes another model than config.json in {config.actor_config.load}, got {listed}. Remove the "
            "section: `~model` on the command line, `- override /model: null` in your file's `defaults` behind the "
            "file that names it, or name the `model` of that folder."
        )
    ]
