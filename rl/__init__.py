"""Turnwise: reinforcement learning of language models that use tools over many turns."""

__version__ = "0.1.0"
