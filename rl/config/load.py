"""Hydra's composition of YAML files and `key=value` overrides into the typed configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config.check import check_section
from rl.config.keys import default_mapping, plain_mapping
from rl.config.moved import take_over
from rl.config.overrides import apply_values, read_overrides
from rl.config.paths import locate_files
from rl.config.problems import Problem, Severity, raise_errors
from rl.config.schema import Config, DatasetConfig
from rl.config.sources import compose, shipped_folder
from rl.errors import ConfigError

logger = logging.getLogger(__name__)

S = TypeVar("S", Config, DatasetConfig)


@dataclass(slots=True, frozen=True)
class Composed(Generic[S]):
    """A configuration and what was found while composing it."""

    config: S
    """Complete even if there are problems: defaults replace wrong values."""
    given: frozenset[str]
    """Dotted paths of the keys that YAML or an override sets."""
    problems: tuple[Problem, ...]


def compose_config(config_name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed[Config]:
    """Compose a run's configuration, collecting problems instead of raising at the first.

    Files, also those in `defaults`, are looked for in the user's folder and then among those of the package. Relative
    paths in the result follow the rule of `rl.config.paths`.

    Args:
        config_name: A file of these folders, with or without `.yaml`, or the path of another file.
        overrides: `key=value` for any key of the schema, whether or not YAML has it; see `rl.config.overrides`.
        config_dir: The user's folder; by default `configs` in the working folder, if it exists.

    Returns:
        The configuration, and a problem for each unknown key and wrong value.

    Raises:
        ConfigError: The file does not exist, or YAML or an override cannot be parsed.
    """
    return _compose(Config, _find(config_name, config_dir), overrides, is_in_package=False)


def load_config(config_name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Config:
    """Compose a run's configuration, for scripts and tests; warnings are logged.

    Raises:
        ConfigError: A key is unknown or a value cannot be used; the message has a line for each.
    """
    return _accept(compose_config(config_name, overrides, config_dir))


def load_dataset_config(
    config_name: str, overrides: Sequence[str] = (), config_dir: Path | None = None
) -> DatasetConfig:
    """Compose the description of a dataset (`datasets/NAME`).

    Raises:
        ConfigError: As `load_config`.
    """
    return _accept(_compose(DatasetConfig, _find(config_name, config_dir), overrides, is_in_package=True))


def save_resolved(config: Config, path: Path) -> None:
    """Write every key with its value as YAML that `load_config` reads again."""
    text = yaml.safe_dump(plain_mapping(config), sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")


def _accept(composed: Composed[S]) -> S:
    raise_errors(composed.problems)
    for problem in composed.problems:
        if problem.severity is Severity.WARNING:
            logger.warning("%s", problem.text)
    return composed.config


@dataclass(slots=True, frozen=True)
class _Found:
    """A file to compose."""

    name: str
    """Path within its folder, without `.yaml`."""
    folders: tuple[Path, ...]
    """Where files are looked for; the first is the user's."""

    def has_group(self, name: str) -> bool:
        """Whether a folder of configurations has this name."""
        return bool(name) and any((folder / name).is_dir() for folder in self.folders)


def _find(config_name: str, config_dir: Path | None) -> _Found:
    """Find a file by its name in the folders, or by its path.

    Raises:
        ConfigError: It does not exist.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: no folder {config_dir}. Name the folder of your YAML files.")
    own = config_dir or Path("configs")
    folders = tuple(folder for folder in (own, shipped_folder()) if folder.is_dir())
    name = config_name.removesuffix(".yaml")
    if any((folder / f"{name}.yaml").is_file() for folder in folders) and not Path(name).is_absolute():
        return _Found(name, folders)
    file = Path(f"{name}.yaml").expanduser()
    if not file.is_file():
        raise ConfigError(_missing_file(folders, name))
    for folder in folders:
        if file.resolve().is_relative_to(folder.resolve()):
            return _Found(str(file.resolve().relative_to(folder.resolve()).with_suffix("")), folders)
    return _Found(file.stem, (file.parent, *folders))


def _compose(cls: type[S], found: _Found, overrides: Sequence[str], *, is_in_package: bool) -> Composed[S]:
    """Compose, resolve interpolations over the defaults, and check every key.

    With `is_in_package` the keys of the file are below the name of its folder, where Hydra places a group.
    """
    read = read_overrides(cls, overrides, found.has_group)
    tree = compose(found.name, read.choices, found.folders)
    for part in Path(found.name).parts[:-1] if is_in_package else ():
        tree = tree.get(part, OmegaConf.create())
    _check_kind(cls, found.name, tree)
    apply_values(tree, read)
    overridden = {".".join(names) for names, _ in read.values}
    plain, problems = take_over(cls, OmegaConf.to_container(tree, resolve=False), overridden)
    config, wrong = check_section(cls, _resolve(cls, plain, found.name))
    locate_files(config, found.folders[0])
    return Composed(config, frozenset(_paths(plain)), tuple(problems + wrong))


def _check_kind(cls: type[S], name: str, tree: DictConfig) -> None:
    """Refuse a dataset's file in place of a run's, and the reverse, with one message instead of one per key."""
    keys = {str(key) for key in tree}
    of_a_run = {field.name for field in fields(Config)}
    if cls is Config and keys and keys == {Path(name).parts[0]} - of_a_run and Path(name).parent.name:
        raise ConfigError(
            f"--config-name: '{name}' is not the configuration of a run, but one of the folder "
            f"'{Path(name).parts[0]}'. Name one directly in the folder of configurations."
        )
    if cls is DatasetConfig and keys & of_a_run:
        raise ConfigError(
            f"--config-name: '{name}' is the configuration of a run, not of a dataset: it has "
            f"{', '.join(sorted(keys & of_a_run))}. Name one such as datasets/NAME."
        )


def _resolve(cls: type[S], tree: dict[str, Any], name: str) -> dict[Any, Any]:
    """Resolve interpolations, which may refer to defaults that YAML does not name."""
    try:
        full = OmegaConf.create(_filled(tree, default_mapping(cls)))
        resolved = OmegaConf.to_container(full, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, ValueError) as failure:  # resolvers raise ValueError
        key = getattr(failure, "full_key", None) or f"{name}.yaml"
        reason = " ".join(str(failure).split("full_key:")[0].split()).rstrip(".")
        raise ConfigError(
            f"{key}: a value refers to something that does not exist, got: {reason}. In text `${{...}}` stands for "
            "another key, or for a variable of the environment (${oc.env:HOME}); write \\${ for the characters."
        ) from failure
    except RecursionError as failure:
        raise ConfigError(
            f"{name}.yaml: values refer to each other in a circle. Replace one of them by a value."
        ) from failure
    assert isinstance(resolved, dict), "a mapping stays a mapping"
    return resolved


def _filled(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The tree with defaults for the keys it lacks, at every level that is a section in both."""
    filled = {**defaults, **tree}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            filled[key] = _filled(value, defaults[key])
    return filled


def _paths(tree: Any, prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


def _missing_file(folders: Sequence[Path], name: str) -> str:
    inner = Path(name).parent
    found = sorted({str(inner / path.stem) for folder in folders for path in (folder / inner).glob("*.yaml")})
    inner_ones = {
        str(path.relative_to(folder).with_suffix("")) for folder in folders for path in folder.glob("*/*.yaml")
    }
    near = [*get_close_matches(name, found, n=1), *sorted(one for one in inner_ones if Path(one).name == name)]
    hint = f" Did you mean '{near[0]}'?" if near else ""
    if any((place / f"{name.removesuffix('.yml')}.yml").is_file() for place in (*folders, Path())):
        hint = " Rename the file: its name must end in .yaml."
    places = " and ".join(map(str, folders))
    return f"--config-name: no file '{name}.yaml' in {places}.{hint} There is: {', '.join(found) or 'none'}."
