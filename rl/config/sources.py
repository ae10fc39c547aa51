"""Finds and composes configurations: in the user's folder first, then in the package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl  # `hydra.compose` takes one folder, this a search path
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from rl.config.moved import with_new_names
from rl.config.yaml_files import parse_mapping, read_text, unfinished_reference
from rl.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """The package's configurations: `rl/configs` if it is installed, `configs` in the repository."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def compose(name: str, choices: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """Compose a file with its defaults list.

    Args:
        name: The file, without `.yaml`; the first folder that has it counts.
        choices: Overrides in Hydra's grammar that choose a member of a group or remove a key.
        folders: Where files are looked for, in this order.

    Returns:
        The composition, with unresolved interpolations.

    Raises:
        ConfigError: A file cannot be read or composed.
    """
    Plugins.instance().register(_YamlFiles)
    version.setbase("1.3")
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        path.append("turnwise", f"{_YamlFiles.scheme()}://{folder.resolve()}")
    path.append("schema", "structured://")
    file = next((found for folder in folders if (found := folder / f"{name}.yaml").is_file()), Path(f"{name}.yaml"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*missing `_self_`")  # it is then last, as one would expect
            tree = ConfigLoaderImpl(path).load_configuration(name, list(choices), RunMode.RUN, from_shell=False)
    except OverrideParseException as failure:
        raise ConfigError(
            f"override: cannot be read, got '{failure.override}'. Write group=NAME, ~group or ~section.key."
        ) from failure
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, OSError) as failure:
        # Hydra raises the last four for defaults and choices that it does not expect
        raise ConfigError(
            f"{file}: cannot be composed, got: {_reason(failure)}. Correct it, or its `defaults`."
        ) from failure
    except RecursionError as failure:
        raise ConfigError(
            f"{file}: its `defaults` come back to a file that they began with. Rename it where it has the name of a "
            "shipped one that it builds on: it takes the place of that."
        ) from failure
    assert isinstance(tree, DictConfig), "Hydra refuses a primary file that holds no mapping"
    with open_dict(tree):
        tree.pop("hydra", None)
    return tree


class _YamlFiles(FileConfigSource):
    """Hydra's reader of a folder, with errors that name file and line."""

    @staticmethod
    def scheme() -> str:
        return "turnwise"

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        text = read_text(file)
        content = parse_mapping(file, text)
        _check_defaults(file, content.get("defaults", []))
        with_new_names(content)
        try:
            header = self._get_header_dict(text)
            node = OmegaConf.create(content)
        except GrammarParseError as failure:
            raise ConfigError(unfinished_reference(f"{file}: {failure.full_key}")) from failure
        except (ValueError, OmegaConfBaseException) as failure:  # for a malformed `# @package` line, a set, a null key
            raise ConfigError(f"{file}: cannot be read, got: {_reason(failure)}. Correct it.") from failure
        return ConfigResult(config=node, path=self.full_path(), provider=self.provider, header=header)


def _check_defaults(file: Path, defaults: Any) -> None:
    """Check the form of a list `defaults`, which Hydra only asserts.

    Raises:
        ConfigError: It has another form.
    """
    items = defaults if isinstance(defaults, list) else [defaults]
    for item in items:
        if isinstance(item, dict):
            (key, value), *others = item.items() or [(None, None)]
            names = value if isinstance(value, list) else [value]
            is_right = not others and isinstance(key, str) and all(isinstance(name, str | None) for name in names)
        else:
            is_right = isinstance(item, str)
        if not is_right or not isinstance(defaults, list):
            raise ConfigError(
                f"{file}: `defaults` must be a list of file names and of `group: name`, got {item!r:.60}. Write for "
                "example `defaults: [dapo_smollm2_135m_retool, {model: smollm2_135m}, _self_]`."
            )


def _reason(failure: BaseException) -> str:
    """The cause in one line, without Hydra's list of places; OmegaConf's message if Hydra wraps it without one."""
    text = str(failure) or str(failure.__cause__ or type(failure).__name__)
    return shorten(text.split("Config search path")[0], 600, placeholder=" ...").rstrip(".")
