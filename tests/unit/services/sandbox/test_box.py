import os
import stat

import pytest

from rl.services.sandbox.box import Box, BoxError


@pytest.fixture
def box(tmp_path):
    (tmp_path / "boxes").mkdir()
    return Box(str(tmp_path / "boxes"), None, is_mounted=False)


@pytest.fixture
def kept(tmp_path):
    """A folder that the box must not change, as a text of its content."""
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o755)
    (folder / "file").write_text("mine")
    (folder / "inner").mkdir()
    yield folder
    assert sorted(os.listdir(folder)) == ["file", "inner"]
    assert (folder / "file").read_text() == "mine"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def contents(box):
    return {name: os.listdir(f"{box.root}/{name}") for name in os.listdir(box.root)}


EMPTY = {"work": [], "tmp": [], "shm": []}


def test_box_is_empty_again_after_it_was_cleared(box):
    box.write("a/b/c.txt", b"1")
    box.write("d", b"2")
    assert box.read(["a/b/c.txt", "d", "d", "missing"]) == {"a/b/c.txt": b"1", "d": b"2"}
    box.clear()
    assert contents(box) == EMPTY
    box.write("a", b"3")
    assert box.read(["a"]) == {"a": b"3"}


def test_box_clears_trees_that_are_deep_closed_and_full(box):
    folder = box.work
    home = os.getcwd()
    os.chdir(folder)
    for _ in range(1100):
        os.mkdir("deep")
        os.chdir("deep")
    os.chdir(home)
    os.makedirs(f"{folder}/closed/inside")
    os.chmod(f"{folder}/closed", 0)
    for i in range(100):
        open(f"{folder}/{i}", "w").close()
    box.clear()
    assert contents(box) == EMPTY
    box.remove()
    assert not os.path.exists(box.root)


def test_box_refuses_a_file_below_a_file(box):
    box.write("a", b"")
    with pytest.raises(NotADirectoryError):
        box.write("a/b", b"")


@pytest.mark.parametrize("name", ["work", "tmp", "shm"])
def test_box_does_not_follow_a_link_in_the_place_of_a_folder(box, kept, name):
    os.rename(f"{box.root}/{name}", f"{box.root}/moved")
    os.symlink(kept, f"{box.root}/{name}")
    assert box.read(["file"]) == {}
    box.clear()
    assert contents(box) == EMPTY
    box.write("new", b"1")
    assert os.listdir(box.work) == ["new"]
    box.remove()
    assert not os.path.exists(box.root)


def test_box_does_not_follow_links_among_its_files(box, kept):
    os.symlink(kept, f"{box.work}/folder")
    os.symlink(kept / "file", f"{box.work}/file")
    assert box.read(["file", "folder/file"]) == {}
    for name in ("file", "folder/file"):
        with pytest.raises(OSError):
            box.write(name, b"theirs")
    box.clear()
    assert contents(box) == EMPTY
    os.makedirs(f"{box.work}/a/b")
    os.symlink(kept, f"{box.work}/a/b/folder")
    box.clear()
    assert contents(box) == EMPTY


def test_box_removes_what_lies_beside_its_folders(box):
    os.mkdir(f"{box.root}/left")
    open(f"{box.root}/left/file", "w").close()
    open(f"{box.root}/big", "w").close()
    os.chmod(f"{box.root}/left", 0)
    os.chmod(box.root, 0o700)
    box.clear()
    assert contents(box) == EMPTY
    assert stat.S_IMODE(os.stat(box.root).st_mode) == 0o711


def test_box_that_was_moved_is_not_used_again(box, kept):
    os.rename(box.root, f"{box.root}-moved")
    os.symlink(kept.parent, box.root)
    with pytest.raises(BoxError, match="was moved"):
        box.clear()
    box.remove()
    assert os.listdir(os.path.dirname(box.root)) == []


def test_box_forgets_times_modes_and_attributes(box):
    os.utime(box.work, (1, 2))
    os.chmod(box.work, 0o701)
    try:
        os.setxattr(box.work, "user.left", b"x")
    except OSError:
        pytest.skip("this file system has no attributes")
    box.clear()
    status = os.stat(box.work)
    assert (os.listxattr(box.work), stat.S_IMODE(status.st_mode)) == ([], 0o700)
    assert status.st_mtime > 1_000_000_000
