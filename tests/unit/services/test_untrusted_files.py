import os

import pytest

from rl.services import untrusted_files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work").mkdir()
    descriptor = untrusted_files.open_folder(str(tmp_path / "work"))
    yield descriptor
    os.close(descriptor)


def test_read_files_leaves_out_links_pipes_devices_and_what_is_too_much(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    work = tmp_path / "work"
    (work / "file").write_bytes(b"12345")
    (work / "other").write_bytes(b"67890")
    (work / "inner").mkdir()
    (work / "inner" / "file").write_bytes(b"abc")
    os.symlink(tmp_path / "secret", work / "out")
    os.symlink("file", work / "in")
    os.symlink("inner", work / "folder")
    os.mkfifo(work / "pipe")
    os.symlink("loop", work / "loop")
    names = [
        "out",
        "in",
        "folder/file",
        "pipe",
        "loop",
        "../secret",
        str(tmp_path / "secret"),
        "inner",
        "",
        "bad\0name",
    ]
    assert untrusted_files.read_files(folder, names, 100) == {}
    names = ["file", "file", "./inner//file", "other"]
    assert untrusted_files.read_files(folder, names, 8) == {"file": b"12345", "./inner//file": b"abc"}


def test_read_files_keeps_no_descriptor_open(folder, tmp_path):
    (tmp_path / "work" / "inner").mkdir()
    os.mkfifo(tmp_path / "work" / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    untrusted_files.read_files(folder, ["inner", "pipe", "inner/missing", "missing/file"], 100)
    assert len(os.listdir("/proc/self/fd")) == before


def test_read_files_takes_no_file_of_another_user(folder, tmp_path):
    (tmp_path / "work" / "file").write_bytes(b"1")
    assert untrusted_files.read_files(folder, ["file"], 100, os.geteuid()) == {"file": b"1"}
    assert untrusted_files.read_files(folder, ["file"], 100, os.geteuid() + 1) == {}


def test_write_file_makes_folders_and_does_not_wait_for_a_pipe(folder, tmp_path):
    untrusted_files.write_file(folder, "a/./b//c", b"1", None)
    assert (tmp_path / "work/a/b/c").read_bytes() == b"1"
    os.mkfifo(tmp_path / "work" / "pipe")
    with pytest.raises(OSError):
        untrusted_files.write_file(folder, "pipe", b"1", None)


def test_remove_takes_a_link_and_not_what_it_leads_to(folder, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    os.symlink(tmp_path / "kept", tmp_path / "work" / "link")
    untrusted_files.remove(folder, "link")
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_remove_takes_a_tree_deeper_than_any_path(folder, tmp_path):
    home = os.getcwd()
    os.chdir(tmp_path / "work")
    for _ in range(1100):
        os.mkdir("deep")
        os.chdir("deep")
    os.chdir(home)
    os.makedirs(tmp_path / "work/deep/wide/closed")
    os.chmod(tmp_path / "work/deep/wide", 0)
    untrusted_files.remove(folder, "deep")
    assert os.listdir(tmp_path / "work") == []
