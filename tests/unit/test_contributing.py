"""The changes that docs/contributing.md shows apply to the code as it is, and the tests that they add pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/contributing.md").read_text()
DIFF = re.compile(r"^```diff\n--- a/(\S+)\n\+\+\+ b/\1\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHANGES = {
    "A new advantage estimator": "tests/unit/algorithms/test_advantages.py",
    "A new configuration key": "tests/unit/training/test_schedule.py::"
    "test_learning_rate_is_at_its_end_after_the_decay_fraction",
    "A new model family": "tests/unit/training/test_parity.py::test_policy_equals_transformers[mistral]",
}
"""Heading of the section, and the tests that show its change at work."""


def diffs_under(heading: str) -> list[tuple[str, str]]:
    """Path and hunks of each diff of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return DIFF.findall(section)


def apply(text: str, hunks: str) -> str:
    """Apply hunks without line numbers: each has its place where its old lines stand; without any, at the end."""
    for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines()
        old = "\n".join(line[1:] for line in lines if line[:1] != "+")
        new = "\n".join(line[1:] for line in lines if line[:1] != "-")
        if not old:
            text += f"{new}\n"
            continue
        assert text.count(old) == 1, f"the page and the code have grown apart: {text.count(old)} times\n{old}"
        text = text.replace(old, new)
    return text


def change(root: Path, heading: str) -> list[str]:
    """Make a section's change in a copy of the repository; the paths that it touches."""
    diffs = diffs_under(heading)
    for path, hunks in diffs:
        (root / path).write_text(apply((root / path).read_text(), hunks))
    return [path for path, _ in diffs]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, its tests and its configurations."""
    root = tmp_path_factory.mktemp("contributed")
    for folder in ("rl", "tests", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize("heading", CHANGES)
def test_change_is_one_or_two_files_of_the_package_and_a_test(heading: str):
    paths = [path for path, _ in diffs_under(heading)]
    assert 1 <= len([path for path in paths if path.startswith("rl/")]) <= 2
    assert any(path.startswith("tests/") for path in paths)


def test_hunk_without_old_lines_goes_to_the_end():
    assert apply("one\ntwo\n", "@@\n one\n+one and a half\n@@\n+three\n") == "one\none and a half\ntwo\nthree\n"
    assert apply("ids=[1, 2]\n", "@@\n-ids=[1,\n+ids=[0, 1,\n") == "ids=[0, 1, 2]\n"


def test_changes_apply_and_the_tests_that_they_add_pass(copy: Path):
    for heading in CHANGES:
        change(copy, heading)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHANGES.values()]
    result = subprocess.run(command, cwd=copy, env={"PYTHONPATH": str(copy)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
