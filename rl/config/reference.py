"""Writes the generated parts of the documentation: keys of the schema, and keys of MindSpeed-RL."""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from rl.config.keys import default_mapping
from rl.config.migration import DATASET_MIGRATION, MIGRATION
from rl.config.moved_trackers import TAKEN_OVER
from rl.config.schema import Config, DatasetConfig

_HEAD = """# Configuration

Every key of a run's YAML, generated from `rl/config/schema.py` by `python -m rl.config.reference docs`. Set only the
keys that differ from their default, in a file of `configs/` or on the command line as `section.key=value`.
`python -m rl validate --config-name NAME` prints all of them with the arithmetic of a step.

## Files

`--config-name NAME` is looked for in your own folder (`--config-dir`, by default `configs` in the working folder), then
among the configurations of the package. The same holds for the files in `defaults`. Your configuration can build on a
shipped one from any folder:

```yaml
# configs/my.yaml
defaults:
  - dapo_smollm2_135m_retool
  - override /model: null     # the `model` section of another model: leave it out, since config.json has the sizes
  - _self_
actor_config:
  load: models/my-model
```

Your file replaces a shipped one of the same name. `--config-name` also takes a path, such as `elsewhere/my.yaml`; its
folder is then your own folder. Files are UTF-8, or UTF-16 with a byte order mark, and end in `.yaml`.

**Paths.** `~` is your home folder. A relative path to a file that is read (model, tokenizer, data, tool YAML, reward
file) is looked for in the working folder, then in your own folder of configurations, then in the folder above that.
Paths that begin with `configs/` are finally looked for in the package. In a tool YAML, the folder of that file replaces
your own folder. What a run writes (`output_dir`, `output_prefix`) is relative to the working folder. `rl validate`
prints the resolved paths.

**The command line.** `key=value` sets any key. If the key is text, the value is exactly what you type: spaces, `=`,
`(`, `~`, `:`, and letters of any script need no quotes except your shell's. Quotes around the whole value are removed,
and `null` means none (`'null'` in quotes is the word). A list of text is split at its commas: `[base_acc, my
(1).py:f]`; put an item with a comma in quotes. Other lists and mappings are written as in YAML: `{'my.py:f': {limit:
3}}`; a mapping is merged into the one from YAML. To set one entry, append its name, which may contain dots:
`my.py:f.limit=3` after `rl_config.verifier_kwargs.`. `${section.key}` stands for the value of another key,
`${oc.env:NAME}` for an environment variable, here and in YAML; write `\\${` for the characters. `group=NAME` chooses
another file of a group (`model=qwen3_4b`), `~group` or `group=null` leaves it out, `~section.key` removes a key.
"""

_BEGIN, _END = "<!-- generated: migration -->", "<!-- end -->"
_DATASET = "Datasets (`configs/datasets/*.yaml`)"
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}


def configuration_page() -> str:
    """The page as Markdown."""
    schema, defaults = TypeAdapter(Config).json_schema(), default_mapping(Config)
    definitions, parts = schema["$defs"], [_HEAD]
    for name, node in schema["properties"].items():
        parts += _section(f"`{name}`", name, _resolved(node, definitions), defaults[name], definitions)
    dataset = TypeAdapter(DatasetConfig).json_schema()
    parts += _section(_DATASET, "", dataset, default_mapping(DatasetConfig), {})
    return "\n".join(parts)


def migration_table() -> str:
    """The answers to the keys of MindSpeed-RL, for docs/migrating.md: a line for each thing that happens."""
    ignored, refused, fine, renamed = _Groups(), _Groups(), _Groups(), list(TAKEN_OVER.items())
    for prefix, entries in (("", MIGRATION), ("datasets.", DATASET_MIGRATION)):
        for path, entry in entries.items():
            if entry.moved_to:
                renamed.append((prefix + path, prefix + entry.moved_to))
            elif path in TAKEN_OVER:
                continue
            elif entry.accepted is None:
                ignored[entry.reason].append(prefix + path)
            else:
                refused[entry.reason].append(prefix + path)
                fine[entry.reason] += [_default(value) for value in entry.accepted]
    lines = ["**Ignored.** The run is the same without them.", "", "| why | keys |", "|---|---|"]
    lines += [f"| {why} | {_short_names(keys)} |" for why, keys in ignored.items()]
    lines += ["", "**Renamed.** The value is taken over.", "", "| there | here |", "|---|---|"]
    lines += [f"| {_short_names(old)} | {_short_names(new)} |" for old, new in _renamed_groups(renamed)]
    lines += [
        "",
        "**Refused**, except for the values in the second column.",
        "",
        "| why | accepted | keys |",
        "|---|---|---|",
    ]
    for why, keys in refused.items():
        accepted = ", ".join(dict.fromkeys(fine[why])) or "none"
        lines.append(f"| {why} | {accepted} | {_short_names(keys)} |")
    return "\n".join(lines)


def write_pages(folder: Path) -> None:
    """Write configuration.md and the table in migrating.md."""
    (folder / "configuration.md").write_text(configuration_page(), encoding="utf-8")
    page = folder / "migrating.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{migration_table()}\n{_END}{after}", encoding="utf-8")


class _Groups(defaultdict[str, list[str]]):
    """Keys by what is said about them."""

    def __init__(self) -> None:
        super().__init__(list)


def _renamed_groups(renamed: list[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
    """Keys that became one are one line, and so are those that only changed their section; others have one each."""
    groups: dict[tuple[str, str] | str, tuple[list[str], list[str]]] = {}
    for old, new in renamed:
        is_same_name = old.rpartition(".")[2] == new.rpartition(".")[2]
        place = (old.rpartition(".")[0], new.rpartition(".")[0]) if is_same_name else new
        olds, news = groups.setdefault(place, ([], []))
        olds.append(old)
        if new not in news:
            news.append(new)
    return list(groups.values())


def _short_names(paths: list[str]) -> str:
    """Keys by their section, as in `actor_config`: `lr`, `min_lr`. A key that is alone is written in full."""
    by_section = _Groups()
    for path in paths:
        section, _, key = path.rpartition(".")
        by_section[section].append(key)
    parts = []
    for section, keys in by_section.items():
        names = ", ".join(f"`{key}`" for key in keys)
        is_alone = len(keys) == 1 and section not in ("", "datasets")
        parts.append(f"`{section}.{keys[0]}`" if is_alone else f"`{section}`: {names}" if section else names)
    return "; ".join(parts)


def _section(
    title: str, path: str, schema: dict[str, Any], defaults: dict[str, Any], definitions: dict[str, Any]
) -> list[str]:
    """A table of the keys of one section, and then its sections within, from its JSON schema."""
    lines = [f"## {title}", "", inspect.cleandoc(schema["description"]), "", "| key | type | default | meaning |"]
    lines.append("|---|---|---|---|")
    inner: list[str] = []
    for name, node in schema["properties"].items():
        resolved = _resolved(node, definitions)
        if "properties" in resolved:
            where = f"{path}.{name}"
            inner += _section(f"`{where}`", where, resolved, defaults[name], definitions)
            continue
        meaning = " ".join(node.get("description", "").split()).replace("|", "\\|")
        lines.append(
            f"| `{name}` | {_type(node, definitions)}{_range(node)} | {_default(defaults[name])} | {meaning} |"
        )
    return [*lines, "", *inner]


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    found: dict[str, Any] = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return found


def _type(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The type of a key, as in `integer or null`."""
    node = _resolved(node, definitions)
    if "anyOf" in node:
        return f"{_type(node['anyOf'][0], definitions)} or null"
    if "enum" in node:
        return ", ".join(node["enum"])
    if node["type"] == "array":
        return f"list of {_type(node['items'], definitions)}"
    return {"string": "text", "boolean": "bool", "object": "mapping"}.get(node["type"], node["type"])


def _range(node: dict[str, Any]) -> str:
    """The range of a number, as in `, at least 0 and at most 1`."""
    number = node.get("items") or node.get("anyOf", [node])[0]
    bounds = [f"{word} {number[key]:,.15g}" for key, word in _BOUNDS.items() if key in number]
    return f", {' and '.join(bounds)}" if bounds else ""


def _default(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
