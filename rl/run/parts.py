"""The inputs that a run reads before it starts: tools, tokenizer, rewards and prompts, each loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rl.config.schema import Config
from rl.data.prompts import drop_long_prompts, load_prompts
from rl.errors import DataError, RewardError
from rl.rewards.registry import Reward, load_rewards
from rl.rollout.dialog import Dialog, load_dialog
from rl.tools.registry import Toolbox, load_toolbox
from rl.types import Prompt


@dataclass(slots=True, frozen=True)
class DataFile:
    """A file of prompts."""

    where: str
    """The key that names it."""
    path: Path
    evaluation_set: str | None = None
    """None: the training prompts."""


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

    def files(self, key: str) -> list[DataFile]:
        """The files of `data_path` or `eval_data_path`; empty if the key is not set."""
        training, where = self.config.megatron_training, f"megatron_training.{key}"
        if key == "data_path":
            return [DataFile(where, Path(training.data_path))] if training.data_path else []
        sets = training.eval_data_path
        return [
            DataFile(f"{where}.{name}" if len(sets) > 1 else where, Path(path), name) for name, path in sets.items()
        ]

    def prompts(self, file: DataFile) -> list[Prompt]:
        """The rows of a file. Raises DataError."""
        if file.where not in self._prompts:
            keys = self.config.megatron_training.dataset_additional_keys
            self._prompts[file.where] = load_prompts(file.path, keys, file.evaluation_set)
        return self._prompts[file.where]

    def short_prompts(self, key: str) -> list[Prompt]:
        """The rows of all files of a key, each of at most `max_prompt_length` tokens.

        Raises:
            DataError: A file is wrong, or no prompt of it is short enough.
        """
        return [prompt for file in self.files(key) for prompt in self._short(file)]

    def _short(self, file: DataFile) -> list[Prompt]:
        limit = self.config.rl_config.max_prompt_length
        try:
            return drop_long_prompts(self.prompts(file), self.dialog.renderer, limit)[0]
        except DataError as failure:
            raise DataError(f"{file.where}: {failure}") from failure
