"""Keys and names with another name here, MindSpeed-RL's and earlier ones: values are taken over, with a warning."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from rl.config.migration import MIGRATIONS, NO_ARCHITECTURE, RENAMED
from rl.config.moved_trackers import TEXTS, take_over_trackers
from rl.config.problems import Problem, warning
from rl.config.schema import Config

SAME_REWARDS = {
    "acc": "math_acc",
    "acc_for_dapo": "math_acc",
    "acc_for_ppo": "math_acc",
    "math_17k_acc": "math_acc",
    "math_verify_reward": "math_acc",
    "strict_format": "format",
}
"""Rewards of MindSpeed-RL and the rewards here that judge the same."""

SAME_PENALTIES = {"kl": "k1", "mse": "k2"}
"""Its estimators of the divergence and their names here."""

_REFERENCE = re.compile(r"(?<!\\)((?:\\\\)*\$\{(?:oc\.select:)?\s*)(\.*)([\w.]+)(?=\s*[},])")
"""A reference to a key: what begins it, its dots, and the key's path."""


def take_over(root: type, tree: Any, overridden: Collection[str] = ()) -> tuple[dict[str, Any], list[Problem]]:
    """Rename what has another name here.

    Args:
        root: The class of the whole configuration.
        tree: The composed mapping.
        overridden: Dotted paths of the keys that the command line sets.

    Returns:
        A changed copy, and a warning for each change.
    """
    tree, problems = copy.deepcopy(tree), []
    names = {path: entry.moved_to for path, entry in MIGRATIONS[root].items() if entry.moved_to}
    _refer_to_new_names(tree, names | (TEXTS if root is Config else {}))
    for path, entry in MIGRATIONS[root].items():
        section, _, key = path.rpartition(".")
        old = _mapping_at(tree, section)
        if entry.moved_to and old is not None and key in old:
            value, kept = old.pop(key), "taken over"
            new_section, _, new_key = entry.moved_to.rpartition(".")
            new = _mapping_at(tree, new_section, make=True)
            if path in RENAMED and new is not None and new.get(new_key) == value:
                pass  # `with_new_names` has taken it over
            elif new is None or new_key in new:
                kept = f"left out beside {entry.moved_to}"
            else:
                new[new_key] = value
            problems.append(warning(f"{path}: got {value!r:.60}, {kept}. {entry.advice}"))
    if root is Config:
        problems += [*_model_sections(tree), *_reward_names(tree), *_penalty_name(tree)]
        problems += take_over_trackers(tree, overridden)
    return tree, problems


def with_new_names(content: dict[str, Any]) -> None:
    """Give the values of earlier keys in one file their present names too; `take_over` removes the earlier ones.

    Done before files are composed, so that a value replaces those of earlier files, whichever name they use.

    Args:
        content: Changed in place.
    """
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        keys = _mapping_at(content, section)
        if keys is not None and key in keys:
            keys.setdefault(new.rpartition(".")[2], keys[key])


def _refer_to_new_names(tree: Any, names: Mapping[str, str]) -> None:
    """Rewrite references (`${section.key}`, `${.key}`) to earlier keys, and remove a value that is then its own."""

    def renamed(path: str) -> str | None:
        for old, new in names.items():
            if path == old or path.startswith(f"{old}."):
                return new + path[len(old) :]
        return None

    def rewrite(text: str, parents: tuple[str, ...]) -> str:
        def replaced(found: re.Match[str]) -> str:
            start, dots, key = found.groups()
            up = len(dots) - 1  # one dot is the value's own section
            section = parents[: len(parents) - up] if dots else ()
            new = renamed(".".join((*section, key))) if up <= len(parents) else None
            return found[0] if new is None else f"{start}{new}"

        return _REFERENCE.sub(replaced, text)

    def visit(node: Any, parents: tuple[str, ...]) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(value, dict | list):
                visit(value, (*parents, str(key)))
            elif isinstance(value, str) and "${" in value:
                own = ".".join((*parents, str(key)))
                node[key] = rewrite(value, parents)
                if node[key] != value and node[key] == f"${{{renamed(own) or own}}}" and isinstance(node, dict):
                    del node[key]

    if isinstance(tree, dict):
        visit(tree, ())


def _mapping_at(tree: Any, path: str, *, make: bool = False) -> dict[str, Any] | None:
    node = tree
    for part in filter(None, path.split(".")):
        if make and isinstance(node, dict):
            node.setdefault(part, {})
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _model_sections(tree: dict[str, Any]) -> list[Problem]:
    """`model.NAME: {...}` of `defaults: [{model: [NAME]}]`: an architecture below the model's name."""
    model = _mapping_at(tree, "model") or {}
    named = [name for name, value in model.items() if isinstance(value, dict)]
    problems = []
    for name in named:
        keys = ", ".join(map(str, model.pop(name)))
        problems.append(warning(f"model.{name}: has no effect here, got a section with {keys}. {NO_ARCHITECTURE}"))
    return problems


def _reward_names(tree: dict[str, Any]) -> list[Problem]:
    rl = _mapping_at(tree, "rl_config") or {}
    names = rl.get("verifier_function")
    if not isinstance(names, list):
        return []
    problems: list[Problem] = []
    for index, name in enumerate(names):
        here = SAME_REWARDS.get(name) if isinstance(name, str) else None
        if here is not None and here not in names:
            names[index] = here
            if rl.get("filter_groups_metric") == name:
                rl["filter_groups_metric"] = here
            text = f"rl_config.verifier_function[{index}]: got '{name}', taken over. Here it is {here}, 0 or 1."
            problems.append(warning(text))
    return problems


def _penalty_name(tree: dict[str, Any]) -> list[Problem]:
    rl = _mapping_at(tree, "rl_config") or {}
    name = rl.get("kl_penalty")
    if not isinstance(name, str) or name not in SAME_PENALTIES:
        return []
    rl["kl_penalty"] = SAME_PENALTIES[name]
    return [warning(f"rl_config.kl_penalty: got '{name}', taken over. Here it is {rl['kl_penalty']}.")]
