"""The actor is imported without W&B, which Megatron would load where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from rl.training.loading import actor_class
actor = actor_class()
assert actor.__name__ == "Actor" and "megatron.core" in sys.modules
assert "wandb" not in sys.modules
import wandb
assert sys.modules["wandb"] is wandb is not None
assert actor_class() is actor and sys.modules["wandb"] is wandb
"""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_actor_is_imported_without_wandb_and_wandb_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
