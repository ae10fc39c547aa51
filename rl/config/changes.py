"""A configuration with some values changed while the program runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.config.check import check_section
from rl.config.keys import plain_mapping
from rl.config.problems import raise_errors
from rl.config.schema import Config


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with other values.

    Args:
        config: Stays as it is.
        changes: Values by dotted key, `actor_config.lr` for example.

    Raises:
        ConfigError: A key does not exist, or a value is wrong; the message has a line for each.
    """
    tree = plain_mapping(config)
    for path, value in changes.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    changed, problems = check_section(Config, tree)
    raise_errors(problems)
    return changed
