"""`rl init`: the project is whole, its tests pass, and its configurations are valid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl.__main__ import main
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A project with its data."""
    folder = tmp_path_factory.mktemp("projects") / "mine"
    assert main(["init", str(folder), "--model", str(model)]) == 0
    run(folder, "make_data.py")
    return folder


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(project: Path) -> None:
    assert "6 passed" in run(project, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(project))


@pytest.mark.parametrize("name", ["train", "sft"])
def test_its_configurations_are_valid(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["validate", "--strict", "--config-name", name]) == 0, capsys.readouterr().out


def test_names_of_this_machine_are_filled_in(project: Path, model: Path) -> None:
    texts = {
        path.name: path.read_text() for path in project.rglob("*") if path.suffix in (".yaml", ".sh", ".md", ".py")
    }
    assert set(texts) >= {"README.md", "run.sh", "train.yaml", "sft.yaml", "tools.yaml", "reward.py", "letters.py"}
    assert [name for name, text in texts.items() if "MODEL_FOLDER" in text or "PYTHON_PATH" in text] == []
    assert f"load: {model}" in texts["train.yaml"]
    assert sys.executable in texts["run.sh"]


def test_a_folder_with_files_is_left_alone(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["init", str(tmp_path), "--model", str(model)]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "mine"), "--model", "nowhere"]) == 2
    assert "no model folder 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
