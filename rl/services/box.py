"""The one folder that a program may write to, and the files that go in and out. Standard library alone.

run/work  the program's folder: its files, its home, where it starts
run/tmp   for temporary files; also as /tmp where the file tree is private
run/shm   /dev/shm, there too
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterable

from rl.services import kernel
from rl.services.file_tree import BOX

MAX_BYTES = 64 << 20
"""Of all files together."""
_MAX_FILES, _MANY_FILES = 16384, 64
_FOLDERS = ("work", "tmp", "shm")


class Box:
    """A folder for one program after the other, empty at the start of each."""

    def __init__(self, directory: str, uid: int | None, *, is_mounted: bool) -> None:
        """Make it.

        Args:
            directory: Where it may lie on the machine, when the file tree is not private.
            uid: Its owner, when that is not this process's user.
            is_mounted: The file tree is private: the folder lies in memory, with a limit, and goes with its mount.
        """
        self._uid = uid
        self._is_mounted = is_mounted
        self.root = f"{BOX}/run" if is_mounted else f"{directory}/{os.getpid()}"
        self.work = f"{self.root}/work"
        self.tmp = f"{self.root}/tmp"
        self._fill()

    def clear(self) -> None:
        """Remove what is in it. No process that uses it may be left.

        Raises:
            OSError: It cannot be made anew.
        """
        try:
            for folder in _FOLDERS:
                self._clear_shallow(f"{self.root}/{folder}")
        except OSError:
            self._empty()
            self._fill()

    def memory_bytes(self) -> int:
        """What the files in it take of the memory."""
        if not self._is_mounted:
            return 0
        used = os.statvfs(self.root)
        return (used.f_blocks - used.f_bfree) * used.f_frsize

    def remove(self) -> None:
        """Remove all of it."""
        with contextlib.suppress(OSError):
            self._empty()

    def write(self, name: str, content: bytes) -> None:
        """Put a file into the program's folder.

        Args:
            name: Relative path, checked to lead nowhere else.
            content: Its bytes.

        Raises:
            OSError: It contradicts another file, or there is no space.
        """
        parent = self.work
        for part in name.split("/")[:-1]:
            parent = f"{parent}/{part}"
            with contextlib.suppress(FileExistsError):
                self._make(parent)
        path = f"{self.work}/{name}"
        with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o700)) as file:
            file.write(content)
        self._give(path)

    def _fill(self) -> None:
        if self._is_mounted:
            options = f"mode=711,size={MAX_BYTES},nr_inodes={_MAX_FILES}"
            kernel.mount("tmpfs", self.root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        else:
            os.mkdir(self.root, 0o711)
        for folder in _FOLDERS:
            self._make(f"{self.root}/{folder}")

    def _empty(self) -> None:
        if self._is_mounted:
            kernel.unmount(self.root)
        else:  # a tree may be deeper than Python's own removal can follow, and closed to its owner
            subprocess.run(["chmod", "-R", "u+rwX", self.root], capture_output=True, check=False)
            subprocess.run(["rm", "-rf", "--one-file-system", self.root], capture_output=True, check=False)

    def _clear_shallow(self, folder: str) -> None:
        """Most programs leave no more than a file or two, which is faster removed than a file system is mounted."""
        names = os.listdir(folder)
        if len(names) > _MANY_FILES:
            raise OSError("too many files")
        for name in names:
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)  # with its attributes
        self._make(folder)

    def _make(self, folder: str) -> None:
        os.mkdir(folder, 0o700)
        self._give(folder)

    def _give(self, path: str) -> None:
        if self._uid is not None:
            os.chown(path, self._uid, self._uid)


def read_files(directory: str, names: Iterable[str], limit: int) -> dict[str, bytes]:
    """Regular files inside a folder; what a link leads out of it, a pipe or a device counts as missing.

    Args:
        directory: The program's folder. Its processes have ended, or are the ones that read.
        names: Paths as asked.
        limit: Bytes of all together; what would go beyond counts as missing.

    Returns:
        Contents by name.
    """
    found: dict[str, bytes] = {}
    root = os.path.realpath(directory)
    for name in dict.fromkeys(names):
        with contextlib.suppress(OSError, ValueError):
            path = os.path.realpath(f"{root}/{name}", strict=True)
            if not path.startswith(root + "/") or not stat.S_ISREG(os.stat(path).st_mode):
                continue
            with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
                content = file.read(limit + 1)
            if len(content) <= limit:
                found[name] = content
                limit -= len(content)
    return found
