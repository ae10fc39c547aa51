"""Where a relative path leads: one rule for every file that a configuration names.

`~` is the home folder. A file to be read is looked for in the working folder; what is not there, beside the
configuration: in the folder of configurations, then in the one above it; `configs/...` at last in the package. A file
to be written stands in the working folder. docs/configuration.md says it to users.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rl.config.problems import Problem, error
from rl.config.ranges import set_value, value_at
from rl.config.schema import Config, DatasetConfig
from rl.config.sources import shipped_folder

_READ = (
    "actor_config.load",
    "megatron_training.tokenizer_name_or_path",
    "megatron_training.data_path",
    "megatron_training.test_data_path",
    "megatron_training.resume",
    "rl_config.tool_config_path",
    "input",
)
_WRITTEN = ("megatron_training.output_dir", "output_prefix")
_FUNCTION = re.compile(r"(.+\.py)(:\w+)")
_NUMBER = re.compile(r"[-+.]*(\d[\d_.]*(e[-+]?\d+)?|inf|nan)", re.IGNORECASE)


def locate(path: str, folders: Sequence[Path]) -> str:
    """Find a file or folder.

    Args:
        path: As written.
        folders: Where to look after the working folder.

    Returns:
        As it was written where it is absolute, in the working folder, or nowhere; else the absolute path.
    """
    path = os.path.expanduser(path)
    if not path or os.path.isabs(path) or os.path.lexists(path):
        return path
    found = next((folder / path for folder in folders if (folder / path).exists()), None)
    shipped = shipped_folder()
    if found is None and path.removeprefix("./").startswith("configs/"):
        found = shipped / path.removeprefix("./").removeprefix("configs/")
    return str(found.resolve()) if found is not None and found.exists() else path


def locate_function(name: str, folders: Sequence[Path]) -> str:
    """Find the file of `path/file.py:name`; another form of name stays as it is."""
    parts = _FUNCTION.fullmatch(name)
    return locate(parts[1], folders) + parts[2] if parts else name


def locate_files(config: Config | DatasetConfig, folder: Path) -> None:
    """Follow the rule for every key that holds a path; a reward goes by its new name everywhere.

    Args:
        config: Changed in place.
        folder: Of the configurations.
    """
    folders = (folder, folder.resolve().parent)
    for path in _keys_of(config):
        if value := value_at(config, path):
            set_value(config, path, locate(value, folders) if path in _READ else os.path.expanduser(value))
    if isinstance(config, Config):
        rl = config.rl_config
        names = {name: locate_function(name, folders) for name in rl.verifier_function}
        rl.verifier_function = [names[name] for name in rl.verifier_function]
        rl.verifier_kwargs = {names.get(name, name): kwargs for name, kwargs in rl.verifier_kwargs.items()}
        for name in names:
            if rl.filter_groups_metric == name or rl.filter_groups_metric.startswith(f"{name}/"):
                rl.filter_groups_metric = names[name] + rl.filter_groups_metric.removeprefix(name)


def path_problems(config: Config | DatasetConfig) -> Iterator[Problem]:
    """What cannot be a path: a number, or a text that the file system does not take."""
    for path in _keys_of(config):
        value = value_at(config, path)
        if value and _NUMBER.fullmatch(value):
            yield error(
                f"{path}: must be a path, got '{value}'. Write ./{value} where a file or folder has that name.", path
            )
        elif value and (reason := _unreachable(value)):
            yield error(f"{path}: cannot be a path here ({reason}), got '{value:.60}'. Correct it.", path)


def _unreachable(path: str) -> str | None:
    """Why the file system refuses to look a path up; that nothing is there is no reason."""
    try:
        os.stat(os.path.expanduser(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        return failure.strerror
    except ValueError as failure:  # a null character, a lone surrogate
        return str(failure)
    return None


def _keys_of(config: Config | DatasetConfig) -> tuple[str, ...]:
    """Paths of the keys that a configuration of this kind has."""
    return tuple(path for path in (*_READ, *_WRITTEN) if ("." in path) is isinstance(config, Config))
