"""Hydra's composition of YAML files and `key=value` overrides into the typed configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config.build import build_section, default_mapping, plain_mapping
from rl.config.overrides import plain_keys
from rl.config.problems import Problem, Severity, raise_errors
from rl.config.schema import Config, DatasetConfig
from rl.errors import ConfigError

logger = logging.getLogger(__name__)

S = TypeVar("S", Config, DatasetConfig)


@dataclass(slots=True, frozen=True)
class Composed(Generic[S]):
    """A configuration and what was found while composing it."""

    config: S
    """Complete even where there were problems: a wrong value is replaced by its default."""
    given: frozenset[str]
    """Dotted paths of the keys that YAML or an override set."""
    problems: tuple[Problem, ...]


def compose_config(config_name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed[Config]:
    """Compose a run's configuration, collecting problems instead of raising at the first.

    Args:
        config_name: Name of a YAML file in the configuration folder, with or without `.yaml`.
        overrides: Hydra's `key=value`; any key of the schema, whether or not YAML has it.
        config_dir: The folder; by default the one that `default_config_dir` finds.

    Returns:
        The configuration and the problems of unknown keys and wrong types.

    Raises:
        ConfigError: There is no such file, or YAML or an override cannot be parsed.
    """
    return _compose(Config, config_name, overrides, config_dir, package="")


def load_config(config_name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Config:
    """Compose a run's configuration, for scripts and tests; warnings are logged.

    Raises:
        ConfigError: A key is unknown or a value of the wrong type; the message has a line for each.
    """
    return _accept(compose_config(config_name, overrides, config_dir))


def load_dataset_config(
    config_name: str, overrides: Sequence[str] = (), config_dir: Path | None = None
) -> DatasetConfig:
    """Compose the description of a dataset (`datasets/NAME`).

    Raises:
        ConfigError: As `load_config`.
    """
    package = ".".join(Path(config_name).parts[:-1])
    return _accept(_compose(DatasetConfig, config_name, overrides, config_dir, package=package))


def default_config_dir() -> Path:
    """`configs` in the working directory, or else beside the package.

    Raises:
        ConfigError: There is neither.
    """
    for folder in (Path.cwd() / "configs", Path(__file__).resolve().parents[2] / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"--config-dir: no folder 'configs', looked in {Path.cwd()}. Name the folder of your YAML files.")


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


def _compose(
    cls: type[S], config_name: str, overrides: Sequence[str], config_dir: Path | None, *, package: str
) -> Composed[S]:
    """Compose, resolve interpolations over the defaults, and build the dataclass."""
    folder = (config_dir or default_config_dir()).resolve()
    name = config_name.removesuffix(".yaml").removesuffix(".yml")
    if not (folder / f"{name}.yaml").is_file():
        raise ConfigError(_missing_file(folder, name))
    tree = _hydra_compose(folder, name, [_forced(plain_keys(item), folder, package) for item in overrides])
    for part in filter(None, package.split(".")):
        tree = tree[part]
    given = frozenset(_paths(tree))
    resolved = _resolve(cls, tree, name)
    problems: list[Problem] = []
    return Composed(build_section(cls, resolved, "", problems, cls), given, tuple(problems))


def _hydra_compose(folder: Path, name: str, overrides: list[str]) -> Any:
    """Hydra's composition as a plain mapping with interpolations still in it."""
    try:
        with initialize_config_dir(str(folder), version_base="1.3", job_name="rl"):
            tree = compose(name, overrides)
        return OmegaConf.to_container(tree, resolve=False)
    except OverrideParseException as failure:
        raise ConfigError(
            f"override: cannot be read, got '{failure.override.lstrip('+')}'. Close every bracket, and put quotes of "
            "the shell around the whole: 'rl_config.verifier_weight=[1.0, 0.5]'."
        ) from failure
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as failure:
        reason = " ".join(str(failure).split("Config search path")[0].split())
        raise ConfigError(f"{folder / name}.yaml: cannot be composed, got: {reason}") from failure


def _resolve(cls: type[S], tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Resolve interpolations, which may refer to defaults that YAML does not name."""
    try:
        full = OmegaConf.create(_filled(tree, default_mapping(cls)))
        resolved = OmegaConf.to_container(full, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as failure:
        reason = " ".join(str(failure).split())
        raise ConfigError(f"{name}.yaml: a value refers to something that is not there, got: {reason}") from failure
    assert isinstance(resolved, dict), "a mapping stays a mapping"
    return {str(key): value for key, value in resolved.items()}


def _filled(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The tree with defaults for the keys it lacks, at every level that is a section in both."""
    filled = {**defaults, **tree}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            filled[key] = _filled(value, defaults[key])
    return filled


def _forced(override: str, folder: Path, package: str) -> str:
    """Let `key=value` set keys that YAML does not name; the choice of a config group stays as it is."""
    key, separator, _ = override.partition("=")
    if not separator and not key.startswith("~"):
        raise ConfigError(f"override: must be key=value, got '{override}'. Write for example rl_config.epochs=2.")
    if key[:1] in "+~" or "@" in key or (folder / key).is_dir():
        return override
    return f"++{package}.{override}" if package else f"++{override}"


def _paths(tree: Any, prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


def _missing_file(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"--config-dir: no folder {folder}. Name the folder of your YAML files."
    inner = Path(name).parent
    found = sorted(str(inner / path.stem) for path in (folder / inner).glob("*.yaml"))
    near = get_close_matches(name, found, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"--config-name: no file '{name}.yaml' in {folder}.{hint} It has: {', '.join(found) or 'none'}."
