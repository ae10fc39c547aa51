"""The command `rl migrate`: converts a file, writes the result, and says what became of every key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rl.config.yaml_files import read_yaml
from rl.errors import ConfigError
from rl.migrate import mindspeed, trl, verl
from rl.migrate.dataset import convert_dataset
from rl.migrate.draft import Draft
from rl.migrate.read import Framework, Source, read_source
from rl.migrate.summary import summary_text
from rl.migrate.tool_config import Tools, convert_tools
from rl.migrate.write import yaml_text

_TOOLS = "rl_config.tool_config_path"
_CONVERT: dict[Framework, Callable[[Source], Draft]] = {
    Framework.MINDSPEED: lambda source: mindspeed.convert(source.tree, source.models),
    Framework.VERL: lambda source: verl.convert(source.tree, is_megatron=source.is_megatron),
    Framework.TRL: lambda source: trl.convert(source.tree),
}


@dataclass(slots=True)
class Migrated:
    """What `rl migrate` writes."""

    texts: dict[Path, str] = field(default_factory=dict)
    """Content by file; the run's configuration comes first."""
    summary: str = ""
    is_run: bool = True
    """Whether the first file is the configuration of a run, and not of a dataset or of tools."""


def main(argv: list[str]) -> Path | None:
    """Parse the arguments, print the summary and write the files.

    Returns:
        The configuration of a run that was written; None for a dataset or tools.
    """
    description = "Convert a configuration of MindSpeed-RL, verl or TRL, and say what became of every key."
    parser = argparse.ArgumentParser(prog="rl migrate", description=description)
    kinds = "a run's YAML, TRL's JSON, a shell script of verl; of MindSpeed-RL also a dataset's or a tool YAML"
    parser.add_argument("file", type=Path, metavar="FILE", help=kinds)
    parser.add_argument("--tool-config", type=Path, metavar="FILE", help="tool YAML; default: the one that FILE names")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: configs/ and the name of FILE")
    whose = "the framework; default: recognized by the keys"
    parser.add_argument("--from", dest="framework", choices=[kind.value for kind in Framework], help=whose)
    arguments = parser.parse_args(argv)
    framework = Framework(arguments.framework) if arguments.framework else None
    done = migrate(arguments.file, arguments.output, arguments.tool_config, framework)
    sys.stdout.write(done.summary)
    _write_files(done)
    return next(iter(done.texts)) if done.is_run else None


def migrate(
    file: Path, output: Path | None = None, tool_config: Path | None = None, framework: Framework | None = None
) -> Migrated:
    """Convert a file.

    Args:
        file: A YAML, JSON or shell file: a run, or of MindSpeed-RL also a dataset or tools.
        output: Where to write; by default `configs/<name of the file>.yaml`, and below `configs/datasets` and
            `configs/tools` for datasets and tools.
        tool_config: The tool YAML of the run; by default the one that it names, where that is found.
        framework: Whose file it is; by default this is found out.

    Raises:
        ConfigError: A file cannot be read, or is of no known framework.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file. Give the configuration to convert.")
    if file.suffix in (".yaml", ".yml") and _is_tool_config(file):
        tools = convert_tools(file)
        return Migrated({output or Path("configs/tools") / file.name: tools.text}, _tools_summary(file, tools), False)
    source = read_source(file, framework)
    if source.framework is Framework.MINDSPEED and {"input", "output_prefix"} & source.tree.keys():
        draft = convert_dataset(source.tree)
        where = output or Path("configs/datasets") / f"{file.stem}.yaml"
        return Migrated({where: yaml_text(draft, file.name)}, summary_text(draft), False)
    draft = _CONVERT[source.framework](source)
    where = output or Path("configs") / f"{file.stem}.yaml"
    done = Migrated()
    tools_text = _tools(draft, file, where, tool_config, done)
    draft.finish()
    draft.by_hand = source.notes | draft.by_hand
    for name in draft.by_hand:
        draft.kept.pop(name, None)
        draft.renamed.pop(name, None)
    done.texts = {where: yaml_text(draft, file.name)} | done.texts
    done.summary = summary_text(draft) + tools_text
    return done


def _write_files(done: Migrated) -> None:
    """Write the files.

    Raises:
        ConfigError: One of them exists already, or cannot be written.
    """
    for path in done.texts:
        if path.exists():
            raise ConfigError(f"{path}: exists already. Name another file with -o, or remove it.")
    for path, text in done.texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as failure:
            raise ConfigError(f"{path}: cannot be written, {failure.strerror}. Name another file with -o.") from failure
        sys.stdout.write(f"wrote {path}\n")


def _is_tool_config(path: Path) -> bool:
    """Whether a YAML lists tools."""
    tree = read_yaml(path)
    return "tools" in tree and "rl_config" not in tree


def _tools(draft: Draft, file: Path, output: Path, tool_config: Path | None, done: Migrated) -> str:
    """Convert the run's tool YAML where it is found, and return the summary."""
    named = draft.value(_TOOLS)
    places = [Path(named), file.parent / named, file.parent.parent / named] if isinstance(named, str) else []
    found = tool_config or next((place for place in places if place.is_file()), None)
    if found is None:
        for name in [name for name in draft.given if name.endswith("tool_config_path") and draft.given[name]]:
            draft.ask(name, "The file is not found from here: give it with --tool-config.")
        return ""
    tools = convert_tools(found)
    if not tools.changes and not tools.by_hand and tool_config is None:
        return ""
    where = output.parent / "tools" / f"{output.stem}.yaml"
    done.texts[where] = tools.text
    sources = [name for name in draft.given if name.endswith("tool_config_path")]
    draft.put(_TOOLS, str(where), *sources, comment=f"converted from {found}")
    if draft.value("rl_config.multi_turn_enable") is not True:
        draft.put("rl_config.multi_turn_enable", True)
        draft.note("rl_config.multi_turn_enable", "tools were given with --tool-config")
    return _tools_summary(found, tools)


def _tools_summary(file: Path, tools: Tools) -> str:
    lines = [f"tools of {file}"]
    for title, entries in (("changed", tools.changes), ("needs a hand", tools.by_hand)):
        lines.append(f"{title}: {len(entries)}")
        lines += [f"  {place}: {text}" for place, text in entries.items()]
    return "\n".join(lines) + "\n"
