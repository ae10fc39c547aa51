"""Imports the actor, which imports Megatron."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl.training.actor import Actor

_HIDDEN = "wandb"


def actor_class() -> type[Actor]:
    """Import `rl.training.actor.Actor`.

    Megatron imports W&B where it is installed. That takes half a second, and leaves two folders in /tmp for each rank
    that is killed. No rank uses W&B, so it is hidden meanwhile, unless the process has loaded it already.
    """
    is_hidden = _HIDDEN not in sys.modules
    if is_hidden:
        sys.modules[_HIDDEN] = None  # type: ignore[assignment]  # its import then fails as if it were missing
    try:
        from rl.training.actor import Actor
    finally:
        if is_hidden:
            del sys.modules[_HIDDEN]
    return Actor
