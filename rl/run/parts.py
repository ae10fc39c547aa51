"""The inputs that a run reads before it starts: tools, tokenizer, rewards and prompts, each loaded once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from rl.config.schema import Config
from rl.data.prompts import drop_long_prompts, load_prompts
from rl.errors import RewardError
from rl.rewards.registry import Reward, load_rewards
from rl.rollout.dialog import Dialog, load_dialog
from rl.tools.registry import Toolbox, load_toolbox
from rl.types import Prompt


class RunParts:
    """The inputs of a run. Each part is loaded once, when it is first needed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._prompts: dict[str, list[Prompt]] = {}

    @cached_property
    def toolbox(self) -> Toolbox | None:
        """The tools; None without `multi_turn_enable`. Raises ToolError."""
        rl = self.config.rl_config
        return load_toolbox(Path(rl.tool_config_path)) if rl.multi_turn_enable and rl.tool_config_path else None

    @cached_property
    def dialog(self) -> Dialog:
        """Tokenizer, parser and tools, tested with each other. Raises ConfigError, ModelError and ToolError."""
        return load_dialog(self.config, toolbox=self.toolbox)

    @cached_property
    def rewards(self) -> list[Reward | RewardError]:
        """Each reward, or the error that loading it raised."""
        rl = self.config.rl_config
        if len(rl.verifier_function) != len(rl.verifier_weight):
            return []  # another check reports it
        found: list[Reward | RewardError] = []
        for name, weight in zip(rl.verifier_function, rl.verifier_weight, strict=True):
            kwargs = {name: rl.verifier_kwargs[name]} if name in rl.verifier_kwargs else {}
            try:
                found += load_rewards([name], [weight], kwargs, rl.verifier_timeout).rewards
            except RewardError as failure:
                found.append(failure)
        return found

    def prompts(self, key: str) -> list[Prompt]:
        """The rows of `data_path` or `test_data_path`. Raises DataError."""
        training = self.config.megatron_training
        if key not in self._prompts:
            self._prompts[key] = load_prompts(Path(getattr(training, key)), training.dataset_additional_keys)
        return self._prompts[key]

    def short_prompts(self, key: str) -> list[Prompt]:
        """The rows of at most `max_prompt_length` tokens; empty if the key is not set. Raises DataError."""
        if not getattr(self.config.megatron_training, key):
            return []
        return drop_long_prompts(self.prompts(key), self.dialog.renderer, self.config.rl_config.max_prompt_length)[0]
