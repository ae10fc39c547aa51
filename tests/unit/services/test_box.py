import os

import pytest

from rl.services.box import Box, read_files


@pytest.fixture
def box(tmp_path):
    return Box(str(tmp_path), None, is_mounted=False)


def test_box_is_empty_again_after_it_was_cleared(box):
    box.write("a/b/c.txt", b"1")
    box.write("d", b"2")
    assert read_files(box.work, ["a/b/c.txt", "d", "d", "missing"], 100) == {"a/b/c.txt": b"1", "d": b"2"}
    box.clear()
    assert os.listdir(box.work) == []
    box.write("a", b"3")
    assert read_files(box.work, ["a"], 100) == {"a": b"3"}


def test_box_clears_trees_that_are_deep_closed_and_full(box):
    folder = box.work
    home = os.getcwd()
    os.chdir(folder)
    for _ in range(1200):
        os.mkdir("deep")
        os.chdir("deep")
    os.chdir(home)
    os.makedirs(f"{folder}/closed/inside")
    os.chmod(f"{folder}/closed", 0)
    for i in range(100):
        open(f"{folder}/{i}", "w").close()
    box.clear()
    assert os.listdir(box.work) == []
    box.remove()
    assert not os.path.exists(box.root)


def test_box_refuses_a_file_below_a_file(box):
    box.write("a", b"")
    with pytest.raises(NotADirectoryError):
        box.write("a/b", b"")


def test_read_files_leaves_out_links_to_elsewhere_pipes_and_what_is_too_much(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    work = tmp_path / "work"
    work.mkdir()
    (work / "file").write_bytes(b"12345")
    (work / "other").write_bytes(b"67890")
    os.symlink(tmp_path / "secret", work / "out")
    os.symlink("file", work / "in")
    os.mkfifo(work / "pipe")
    os.symlink("loop", work / "loop")
    names = ["out", "pipe", "loop", "../secret", "in", "file", "other", "bad\0name"]
    assert read_files(str(work), names, 10) == {"in": b"12345", "file": b"12345"}
