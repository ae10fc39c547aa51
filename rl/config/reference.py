"""Writes the generated parts of the documentation: keys of the schema, and keys of MindSpeed-RL."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from rl.config.keys import default_mapping
from rl.config.migration import DATASET_MIGRATION, MIGRATION, Migration
from rl.config.schema import Config, DatasetConfig

_HEAD = """# Configuration

Every key of a run's YAML, from `rl/config/schema.py`, written by `python -m rl.config.reference docs`. Only keys that
differ from their default need to be given, in a file of `configs/` or on the command line as `section.key=value`.
`python -m rl validate --config-name NAME` prints all of them with the arithmetic of a step.

## Files

`--config-name NAME` is looked for in your own folder, `configs` of the working folder or `--config-dir`, and then among
the configurations that come with the package; so are the files that `defaults` names. A configuration of your own can
build on a shipped one from any folder:

```yaml
# configs/my.yaml
defaults:
  - dapo_smollm2_135m_retool
  - override /model: null     # the model of another name: its config.json says what it is
  - _self_
actor_config:
  load: models/my-model
```

A file of yours takes the place of a shipped one of the same name. `--config-name` also takes a path, such as
`elsewhere/my.yaml`; your own folder is then the one it stands in. Files are UTF-8, or UTF-16 with a byte order mark,
and end in `.yaml`.

**Paths.** `~` is your home folder. A relative path to a file that is read (model, tokenizer, data, tool YAML, reward
file) is looked for in the working folder; what is not there, in your own folder of configurations, then in the folder
above it. Paths that begin with `configs/` are at last looked for among the shipped ones. Within a tool YAML the same
holds, with the folder of that file in the place of your own. What a run writes (`output_dir`, `output_prefix`) is
relative to the working folder. `rl validate` prints where each path led.

**The command line.** `key=value` sets any key. Where the key is text, what you type is the text: spaces, `=`, `(`, `~`,
`:`, and letters of any script need no further quotes than your shell's. Quotes around the whole are taken off, and
`null` is nothing (`'null'` in quotes is the word). A list of text is cut at its commas: `[base_acc, my (1).py:f]`; put
an item with a comma in quotes. Other lists and mappings are written as in YAML: `{'my.py:f': {limit: 3}}`; a mapping is
merged into the one that YAML gives. One entry is set by its name, whose dots belong to it: `my.py:f.limit=3`
behind `rl_config.verifier_kwargs.`. `${section.key}` stands for another key's value, `${oc.env:NAME}` for a variable of
the environment, here and in YAML; `\\${` is the characters. `group=NAME` chooses another file of a group
(`model=qwen3_4b`), `~group` or `group=null` leaves it out, `~section.key` removes a key.
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
    """The answer to each key of MindSpeed-RL, for docs/migrating.md."""
    lines = ["| key | accepted | what to do |", "|---|---|---|"]
    for path, entry in MIGRATION.items():
        lines.append(_migration_row(path, entry))
    for key, entry in DATASET_MIGRATION.items():
        lines.append(_migration_row(f"datasets: {key}", entry))
    return "\n".join(lines)


def write_pages(folder: Path) -> None:
    """Write configuration.md and the table in migrating.md."""
    (folder / "configuration.md").write_text(configuration_page(), encoding="utf-8")
    page = folder / "migrating.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{migration_table()}\n{_END}{after}", encoding="utf-8")


def _migration_row(path: str, entry: Migration) -> str:
    accepted = "any value" if entry.accepted is None else ", ".join(sorted({_default(v) for v in entry.accepted}))
    return f"| `{path}` | {accepted or 'none'} | {entry.advice} |"


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
