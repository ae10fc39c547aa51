"""`eval_data_path`: one path or several named ones, in YAML and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.config.load import load_config, save_resolved
from rl.errors import ConfigError

KEY = "megatron_training.eval_data_path"


def sets_of(folder: Path, yaml: str, *overrides: str) -> dict[str, str]:
    (folder / "run.yaml").write_text(f"megatron_training: {{eval_data_path: {yaml}}}\n")
    return load_config("run", overrides, folder).megatron_training.eval_data_path


@pytest.mark.parametrize(
    ("yaml", "overrides", "sets"),
    [
        ("data/math.parquet", [], {"math": "data/math.parquet"}),
        ("{math: a.parquet, qa: b.parquet}", [], {"math": "a.parquet", "qa": "b.parquet"}),
        ("null", [], {}),
        ("data/math.parquet", [f"{KEY}=other/qa.jsonl"], {"qa": "other/qa.jsonl"}),
        ("data/math.parquet", [f"{KEY}={{math: a.parquet, qa: b.parquet}}"], {"math": "a.parquet", "qa": "b.parquet"}),
        ("{math: a.parquet}", [f"{KEY}.qa=b.parquet"], {"math": "a.parquet", "qa": "b.parquet"}),
        ("{math: a.parquet, qa: b.parquet}", [f"{KEY}={{math: null}}"], {"qa": "b.parquet"}),
        ("{math: a.parquet, qa: b.parquet}", [f"{KEY}=c.parquet"], {"c": "c.parquet"}),
        ("{math: a.parquet}", [f"{KEY}=null"], {}),
        ("all.parquet", [], {"all": "all.parquet"}),
    ],
)
def test_sets_are_named(tmp_path: Path, yaml: str, overrides: list[str], sets: dict[str, str]) -> None:
    assert sets_of(tmp_path, yaml, *overrides) == sets


def test_sets_survive_the_resolved_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("megatron_training: {eval_data_path: {math: a.parquet, all that: b.parquet}}\n")
    config = load_config("run", (), tmp_path)
    save_resolved(config, tmp_path / "again.yaml")
    assert load_config("again", (), tmp_path) == config


def test_sets_are_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_text("")
    assert sets_of(tmp_path, "{math: a.parquet, qa: b.parquet}") == {
        "math": "a.parquet",
        "qa": str(tmp_path / "b.parquet"),
    }


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("5", f"{KEY}: must be a mapping of names to values, got 5"),
        ("[a.parquet]", f"{KEY}: must be a mapping of names to values"),
        ("{math: 5}", f"{KEY}.math: must be text, got 5"),
        ("{math: '5'}", f"{KEY}.math: must be a path, got '5'"),
        ("{a/b: a.parquet}", f"{KEY}: a set cannot be named 'a/b'"),
        ("{all: a.parquet, qa: b.parquet}", f"{KEY}: a set cannot be named 'all'"),
        ("{math: a.parquet, math: b.parquet}", "found duplicate key math"),
    ],
)
def test_wrong_sets_are_told(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(ConfigError) as failure:
        sets_of(tmp_path, yaml)
    assert message in str(failure.value)
