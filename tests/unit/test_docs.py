"""What the documentation names exists: keys, commands, files, code, metrics."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from rl.__main__ import COMMANDS
from rl.config.check import check_section
from rl.config.keys import field_types, key_paths
from rl.config.migration import MIGRATION
from rl.config.reference import configuration_page, migration_table
from rl.config.schema import Config, DatasetConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
SECTIONS = tuple(field_types(Config))

KEY = re.compile(rf"(?<![\w/.])(?:{'|'.join(SECTIONS)})\.[a-z0-9_]+(?:\.[a-z0-9_]+)*")
FRAMEWORKS = {"agents", "dspy", "textarena"}
"""Packages that examples need and the tests do not install."""
COMMAND = re.compile(r"(?:python -m rl|(?<=`)rl) ([a-z_]+)")
CONFIG_NAME = re.compile(r"--config-name ([\w/]+)")
SCRIPT = re.compile(r"(?<![\w/])(?:bash )?(scripts/\w+\.sh)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_KEYS = ("model.safetensors", "model.py")

page_ids = [str(path.relative_to(ROOT)) for path in PAGES]
text_files = pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
pages = pytest.mark.parametrize("path", PAGES, ids=page_ids)


def test_configuration_page_is_what_the_schema_says() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == configuration_page(), (
        "run python -m rl.config.reference docs"
    )


def test_migrating_page_holds_the_table_of_foreign_keys() -> None:
    assert migration_table() in (ROOT / "docs/migrating.md").read_text(), "run python -m rl.config.reference docs"


def test_every_key_has_a_line_of_meaning() -> None:
    rows = [line.split(" | ") for line in configuration_page().splitlines() if line.startswith("| `")]
    assert len(rows) >= len(key_paths(Config)) + len(key_paths(DatasetConfig))
    assert [row[0] for row in rows if not row[3].strip(" |")] == []


@text_files
def test_page_names_keys_that_exist(path: Path) -> None:
    known = set(key_paths(Config)) | set(MIGRATION)
    known |= {key.rpartition(".")[0] for key in known}
    named = {match.rstrip(".") for match in KEY.findall(path.read_text())}
    named -= {name for name in named if name.startswith(NOT_KEYS)}
    prefixes = {name for name in named if name.endswith("_") and any(key.startswith(name) for key in known)}
    assert named - known - prefixes == set()


@text_files
def test_page_names_commands_configurations_and_scripts_that_exist(path: Path) -> None:
    text = path.read_text()
    assert {name for name in COMMAND.findall(text) if name not in COMMANDS} == set()
    names = {name for name in CONFIG_NAME.findall(text) if name[-1] != "/" and not name.rpartition("/")[2].isupper()}
    folders = (ROOT / "configs", ROOT / "rl/project/template/configs")
    known = {name for name in names for folder in folders if (folder / f"{name}.yaml").is_file()}
    assert names - known == set()
    assert {name for name in SCRIPT.findall(text) if not (ROOT / name).is_file()} == set()


@pages
def test_page_links_to_files_that_exist(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pages
def test_page_shows_python_that_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, code in BLOCK.findall(path.read_text()):
        if language == "python":
            program = compile(ast.parse(code), str(path), "exec", dont_inherit=True)
            try:
                exec(program, {"__name__": "documentation"})
            except ModuleNotFoundError as error:
                assert error.name in FRAMEWORKS


@pages
def test_page_shows_yaml_that_the_schema_takes(path: Path) -> None:
    for language, code in BLOCK.findall(path.read_text()):
        node = yaml.safe_load(code) if language == "yaml" else None
        if isinstance(node, dict) and set(node) & set(SECTIONS):
            _, problems = check_section(Config, {key: node[key] for key in node if key != "defaults"})
            assert [problem.text for problem in problems] == []
