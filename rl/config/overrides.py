"""Overrides of the command line in the spelling that users know from YAML and JSON, for Hydra."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"""(["'])((?:\\.|(?!\1).)*)\1""")
_SPECIAL = re.compile(r"([\\()\[\]{}:=, \t])")


def plain_keys(override: str) -> str:
    r"""Spell the quoted keys of mappings as Hydra's grammar has them: without quotes, and with escapes.

    Args:
        override: For example `a={"my_rewards.py:short": {"limit": 150}, "text": "{\"b\": 1}"}`.

    Returns:
        For example `a={my_rewards.py\:short: {limit: 150}, text: "{\"b\": 1}"}`: quoted values stay.
    """

    def spelled(found: re.Match[str]) -> str:
        before, after = override[: found.start()].rstrip()[-1:], override[found.end() :].lstrip()[:1]
        is_key = before in ("{", ",") and after == ":"
        return _SPECIAL.sub(r"\\\1", found[2]) if is_key else found[0]

    return _QUOTED.sub(spelled, override)
