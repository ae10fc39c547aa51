"""Reads a configuration of another framework and finds out whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config.overrides import apply_values, read_overrides
from rl.config.yaml_files import parse_mapping, read_text
from rl.errors import ConfigError
from rl.migrate.shell import read_script

_HAS_MAPPING = (".yaml", ".yml", ".json")
_KNOWN_CONFIGS = ("ppo_trainer", "ppo_megatron_trainer", "dapo_trainer", "dapo_megatron_trainer")
"""Files of verl whose defaults the conversion knows."""


class Framework(StrEnum):
    """Whose configuration a file is."""

    MINDSPEED = "mindspeed"
    VERL = "verl"
    TRL = "trl"


_MARKS: dict[Framework, tuple[str, ...]] = {
    Framework.MINDSPEED: ("megatron_training", "rl_config", "generate_config", "handler_name", "output_prefix"),
    Framework.VERL: ("actor_rollout_ref", "algorithm", "trainer", "custom_reward_function"),
    Framework.TRL: (
        "num_generations",
        "per_device_train_batch_size",
        "max_completion_length",
        "model_name_or_path",
        "learning_rate",
        "gradient_accumulation_steps",
    ),
}
"""Keys at the top of a file by which it is recognized."""


@dataclass(slots=True)
class Source:
    """What a file holds."""

    path: Path
    tree: dict[str, Any]
    framework: Framework
    models: list[str] = field(default_factory=list)
    """Architecture files that `defaults` names."""
    is_megatron: bool = False
    """Whether verl's trainer for Megatron gives the defaults."""
    notes: dict[str, str] = field(default_factory=dict)
    """What could not be read, and what to do."""


def read_source(path: Path, framework: Framework | None = None) -> Source:
    """Read a YAML, JSON or shell file.

    Args:
        path: The file.
        framework: Whose it is; by default this is found out from its keys.

    Raises:
        ConfigError: It cannot be read, or its keys are of no known framework.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Give the configuration to convert.")
    text = read_text(path)
    source = Source(path, {}, framework or Framework.VERL)
    if path.suffix == ".json":
        source.tree = _parse_json(path, text)
    elif path.suffix in _HAS_MAPPING:
        source.tree = parse_mapping(path, text)
    else:
        _read_overrides(source, text)
    if path.suffix in _HAS_MAPPING:
        source.framework = framework or _recognize(path, source.tree)
        source.tree = _composed(source, source.tree, path.parent)
    source.is_megatron |= _uses_megatron(source.tree)
    source.tree = _resolved(source)
    return source


def _recognize(path: Path, tree: Mapping[str, Any]) -> Framework:
    found = {framework: sum(mark in tree for mark in marks) for framework, marks in _MARKS.items()}
    best = max(found, key=lambda framework: found[framework])
    if not found[best]:
        raise ConfigError(
            f"{path}: has no key by which MindSpeed-RL, verl or TRL is recognized, got "
            f"{', '.join(map(str, tree))[:80] or 'nothing'}. Say whose it is: --from mindspeed, verl or trl."
        )
    return best


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as failure:
        raise ConfigError(f"{path}, line {failure.lineno}: is not valid JSON: {failure.msg}. Correct it.") from failure
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold one object, got {type(tree).__name__}. Give the trainer's arguments.")
    return tree


def _read_overrides(source: Source, text: str) -> None:
    """Overrides on top of the configuration that the script's command names."""
    script = read_script(text)
    if not script.overrides:
        raise ConfigError(f"{source.path}: has no override such as data.train_batch_size=256. Give a YAML or a script.")
    name = script.options.get("config-name", "ppo_trainer").removesuffix(".yaml")
    base: dict[str, Any] = {}
    source.is_megatron = "megatron" in name
    if name not in _KNOWN_CONFIGS:
        folder = Path(script.options.get("config-path", ""))
        near = (folder, source.path.parent / folder, source.path.parent / "config")
        file = next((found for place in near if (found := place / f"{name}.yaml").is_file()), None)
        if file is None:
            source.notes["--config-name"] = f"The script builds on {name}.yaml, which is not found: add its keys."
        else:
            base = _composed(source, parse_mapping(file, read_text(file)), file.parent)
    source.notes |= script.notes
    tree = OmegaConf.create(base)
    apply_values(tree, read_overrides(object, script.overrides, lambda group: False))
    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict), "a mapping stays a mapping"
    source.tree = {str(key): value for key, value in plain.items()}


def _composed(source: Source, tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The file over those of its `defaults` list that are found beside it."""
    below: dict[str, Any] = {}
    own = {key: value for key, value in tree.items() if key not in ("defaults", "hydra")}
    for item in tree.get("defaults") or []:
        group, names = next(iter(item.items())) if isinstance(item, dict) and item else (None, item)
        for name in names if isinstance(names, list) else [names]:
            if group == "model" and source.framework is Framework.MINDSPEED:
                source.models.append(str(name))
            elif group is None and str(name) not in ("_self_", *_KNOWN_CONFIGS):
                below = _below(source, below, folder, str(name))
            elif str(name) in _KNOWN_CONFIGS:
                source.is_megatron |= "megatron" in str(name)
            elif group is not None and source.framework is not Framework.VERL:
                source.notes[f"defaults: {group}: {name}"] = "Is not read: add its keys."
    return _merged(below, own)


def _below(source: Source, below: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    file = folder / f"{name}.yaml"
    if file.is_file() and file.resolve() != source.path.resolve():
        return _merged(below, _composed(source, parse_mapping(file, read_text(file)), folder))
    source.notes[f"defaults: {name}"] = f"The file builds on {name}.yaml, which is not beside it: add its keys."
    return below


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _uses_megatron(tree: dict[str, Any]) -> bool:
    actor = (
        (tree.get("actor_rollout_ref") or {}).get("actor") if isinstance(tree.get("actor_rollout_ref"), dict) else {}
    )
    return isinstance(actor, dict) and (actor.get("strategy") == "megatron" or "megatron" in actor)


def _resolved(source: Source) -> dict[str, Any]:
    """Replace references (`${data.max_prompt_length}`); those to what the file lacks are taken out and named."""
    whole = OmegaConf.create(source.tree)

    def visit(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            found = {str(key): visit(value, f"{path}{key}.") for key, value in node.items()}
            return {key: value for key, value in found.items() if value is not _UNRESOLVED}
        if isinstance(node, str) and "${" in node:
            return _reference(source, whole, node, path.removesuffix("."))
        return node

    tree = visit(source.tree, "")
    assert isinstance(tree, dict), "a mapping stays a mapping"
    return tree


_UNRESOLVED = object()


def _reference(source: Source, whole: DictConfig, text: str, path: str) -> Any:
    try:
        value = OmegaConf.select(whole, path, throw_on_resolution_failure=True)
    except (OmegaConfBaseException, ValueError) as failure:
        reason = " ".join(str(failure).split("full_key")[0].split())
        source.notes.setdefault(path, f"Refers to what the file does not hold ({reason:.80}). Write the value.")
        return _UNRESOLVED
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
