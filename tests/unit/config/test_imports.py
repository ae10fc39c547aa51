"""Files and modules of a user, imported by what a configuration says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.config.imports import import_place, import_target


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_found_from_the_working_folder_and_imports_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "code" / "neighbour_of_mine.py", "VALUE = 7\n")
    write(tmp_path / "code" / "my_file.py", "from neighbour_of_mine import VALUE\n")
    monkeypatch.chdir(tmp_path)
    assert import_target("code/my_file.py:VALUE") == 7
    assert import_target(f"{tmp_path}/code/my_file.py:VALUE") == 7


def test_files_of_one_name_in_two_folders_have_each_their_own_neighbours(tmp_path: Path):
    for number in (1, 2):
        write(tmp_path / str(number) / "helpers_of_it.py", f"VALUE = {number}\n")
        write(tmp_path / str(number) / "my_file.py", "from helpers_of_it import VALUE\ndef get(): return VALUE\n")
    first = import_target(f"{tmp_path}/1/my_file.py:get")
    second = import_target(f"{tmp_path}/2/my_file.py:get")
    assert (first(), second()) == (1, 2)
    assert import_target(f"{tmp_path}/1/my_file.py:get")() == 1


@pytest.mark.parametrize("name", ["json.py", "rl.py", "two words.py"])
def test_a_file_may_have_the_name_of_a_module_or_none_that_is_one(tmp_path: Path, name: str):
    module = import_place(str(write(tmp_path / name, "VALUE = 1\n")))
    assert module.VALUE == 1
    assert sys.modules["json"] is json
    assert sys.modules[module.__name__] is module


def test_a_file_that_was_changed_is_read_again(tmp_path: Path):
    path = write(tmp_path / "changing_file.py", "VALUE = 1\n")
    assert import_target(f"{path}:VALUE") == 1
    path.write_text("VALUE = 22\n")
    assert import_target(f"{path}:VALUE") == 22


def test_a_module_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "module_of_mine.py", "VALUE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # as the command `rl` finds it
    assert import_target("module_of_mine:VALUE") == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.py:f", "no file .*/nowhere.py, nor one of this name beside the configuration"),
        ("nowhere_at_all:f", "No module named 'nowhere_at_all'"),
    ],
)
def test_what_is_not_there_is_an_import_error(target: str, message: str):
    with pytest.raises(ImportError, match=message):
        import_target(target)
