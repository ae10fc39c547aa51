"""scripts/setup.sh with an interpreter that writes down what it is asked: what is installed, when, and over what."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

INTERPRETER = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$LOG"
case "$*" in
    "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    --version) printf 'Python 3.12.1\\n' ;;
    *"version_info"*) exit "${WRONG_VERSION:-0}" ;;
    *"torch.version.cuda"*) exit "${WITHOUT_CUDA:-0}" ;;
esac
"""


class Setup:
    """A copy of what the script reads, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "setup.py", folder)
        shutil.copy(ROOT / "scripts/setup.sh", folder / "scripts")
        shutil.copytree(ROOT / "requirements", folder / "requirements")
        self.python = folder / "python"
        self.python.write_text(INTERPRETER)
        self.python.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "LOG": str(self.log)} | variables
        command = ["bash", str(self.folder / "scripts/setup.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def asked(self, word: str) -> list[str]:
        """What followed `word` in each command that has it."""
        return [line.split(word, 1)[1].strip() for line in self.log.read_text().splitlines() if word in line]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_setup_makes_the_cpu_environment_by_itself_and_then_does_nothing(setup: Setup) -> None:
    assert setup.run().stdout.endswith("setup: done: .venv (cpu)\n")
    assert setup.asked("venv --clear") == [".venv"]
    assert setup.asked("progress-bar off") == [
        "--no-deps torch==2.13.0+cpu",
        "--no-deps -r requirements/common.txt -r requirements/cpu.txt -r requirements/dev.txt",
        "--no-deps --editable .",
    ]
    assert setup.run().stdout == ""
    assert setup.log.read_text() == ""


def test_setup_cuda_installs_the_lists_of_cuda_and_is_remembered(setup: Setup) -> None:
    assert setup.run("cuda").returncode == 0
    assert setup.asked("progress-bar off") == [
        "--no-deps -r requirements/common.txt -r requirements/cuda.txt -r requirements/dev.txt",
        "--no-deps --editable .",
    ]
    assert setup.run().stdout == ""  # what scripts of the quickstart call
    with (setup.folder / "requirements/cuda.txt").open("a") as pins:
        pins.write("one-more==1\n")
    assert setup.run().stdout.endswith("setup: done: .venv (cuda)\n")
    assert setup.asked("venv --clear") == []
    assert "-r requirements/cuda.txt" in setup.log.read_text()


def test_setup_never_installs_one_kind_over_the_other(setup: Setup) -> None:
    setup.run()
    assert setup.run("cuda").returncode == 0
    assert setup.asked("venv --clear") == [".venv"]
    assert setup.run("cpu").returncode == 0
    assert setup.asked("venv --clear") == [".venv"]


def test_setup_takes_an_environment_without_a_note_for_the_cpus(setup: Setup) -> None:
    setup.run()
    (setup.folder / ".venv/.turnwise-kind").unlink()
    assert setup.run().stdout == ""


def test_setup_cuda_refuses_a_torch_without_cuda_and_is_taken_up_again(setup: Setup) -> None:
    refused = setup.run("cuda", WITHOUT_CUDA="1")
    assert (refused.returncode, "a build without CUDA" in refused.stderr) == (1, True)
    assert setup.run("cuda").stdout.endswith("setup: done: .venv (cuda)\n")


def test_setup_names_a_wrong_argument_and_a_wrong_python(setup: Setup) -> None:
    refused = setup.run("gpu")
    assert (refused.returncode, "must be cpu or cuda, got 'gpu'" in refused.stderr) == (1, True)
    refused = setup.run(WRONG_VERSION="1")
    assert (refused.returncode, "must be Python 3.11 or 3.12, got Python 3.12.1" in refused.stderr) == (1, True)
