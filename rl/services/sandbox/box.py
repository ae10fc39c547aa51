"""The one folder that a program may write to, and the files that go in and out. Standard library alone.

run/work  the program's folder: its files, its home, where it starts
run/tmp   for temporary files; also as /tmp where the file tree is private
run/shm   /dev/shm, there too

A program may write to these three and not to `run`, so it cannot put another folder in the place of one. Where no
layer keeps it from that (`mount`, `landlock`, `own_uid`), it does no harm: the box holds its folders open and follows
no link.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable

from rl.services import beneath
from rl.services.sandbox import kernel
from rl.services.sandbox.file_tree import BOX

MAX_BYTES = 64 << 20
"""Of all files together."""
_MAX_FILES, _MANY_FILES = 16384, 64
_FOLDERS = ("work", "tmp", "shm")


class BoxError(OSError):
    """A program has changed what was not its own, and the box cannot be used any more."""


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
        self.root = f"{BOX}/run" if is_mounted else tempfile.mkdtemp(dir=directory)
        self.work, self.tmp, _ = self.folders = tuple(f"{self.root}/{name}" for name in _FOLDERS)
        self._open: dict[str, int] = {}
        self._root = -1
        self._fill()

    @property
    def work_descriptor(self) -> int:
        """The program's folder, open."""
        return self._open["work"]

    def clear(self) -> None:
        """Remove what is in it. No process that uses it may be left.

        Raises:
            BoxError: It is not where it was.
            OSError: It cannot be made anew.
        """
        try:
            self._check_place()
            for folder in self._open.values():
                self._clear_shallow(folder)
        except (FileExistsError, IsADirectoryError, PermissionError):
            self._clear_deep()

    def memory_bytes(self) -> int:
        """What the files in it take of the memory."""
        if not self._is_mounted:
            return 0
        used = os.fstatvfs(self._root)
        return (used.f_blocks - used.f_bfree) * used.f_frsize

    def remove(self) -> None:
        """Remove all of it."""
        if self._is_mounted:
            return  # it goes with the last process in its namespace
        with contextlib.suppress(OSError):
            parent = beneath.open_folder(os.path.dirname(self.root))
            for name in os.listdir(parent):
                if name == os.path.basename(self.root) or _is_at(self._root, name, parent):  # it may have been moved
                    beneath.remove(parent, name)
            os.close(parent)

    def write(self, path: str, content: bytes) -> None:
        """Put a file into the program's folder.

        Args:
            path: Relative, checked to lead nowhere else.
            content: Its bytes.

        Raises:
            OSError: It contradicts another file, or there is no space.
        """
        beneath.write_file(self.work_descriptor, path, content, self._uid)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """What the program has left under these paths, as `beneath.read_files` reads it."""
        return beneath.read_files(self.work_descriptor, paths, MAX_BYTES, self._uid)

    def _fill(self) -> None:
        if self._is_mounted:
            options = f"mode=711,size={MAX_BYTES},nr_inodes={_MAX_FILES}"
            kernel.mount("tmpfs", self.root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        else:
            os.chmod(self.root, 0o711)
        root = beneath.open_folder(self.root)
        for name, path in zip(_FOLDERS, self.folders, strict=True):
            beneath.make_folder(root, name, self._uid)
            if self._is_mounted:  # so that it stays writable
                kernel.mount(path, path, None, kernel.MS_BIND)
            self._open[name] = beneath.open_folder(path)
        self._root = root
        if self._is_mounted:
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount(None, self.root, None, flags)

    def _check_place(self) -> None:
        """A program without layers that keep it from that may have moved the folders, or put others beside them.

        Raises:
            BoxError: The box lies elsewhere.
            FileExistsError: Something does not belong there.
        """
        if not _is_at(self._root, self.root):
            raise BoxError(f"{self.root} is not the folder that it was")
        if set(os.listdir(self._root)) != set(_FOLDERS):
            raise FileExistsError("there are other files beside the folders")
        if not all(_is_at(self._open[name], name, self._root) for name in _FOLDERS):
            raise FileExistsError("another folder is in the place of one")

    def _clear_shallow(self, folder: int) -> None:
        """Most programs leave no more than a file or two, which is faster removed than a file system is mounted."""
        names = os.listdir(folder)
        if len(names) > _MANY_FILES:
            raise FileExistsError("too many files")
        for name in names:
            os.unlink(name, dir_fd=folder)
        self._clear_attributes(folder)

    def _clear_deep(self) -> None:
        if self._is_mounted:
            for descriptor in (*self._open.values(), self._root):
                os.close(descriptor)
            kernel.unmount(self.root)
            self._fill()
            return
        os.fchmod(self._root, 0o711)
        own = {name: folder for name, folder in self._open.items() if _is_at(folder, name, self._root)}
        for name in set(os.listdir(self._root)) - set(own):
            beneath.remove(self._root, name)
        for name in _FOLDERS:
            if name not in own:
                os.close(self._open[name])
                beneath.make_folder(self._root, name, self._uid)
                self._open[name] = beneath.open_folder(name, self._root)
            folder = self._open[name]
            os.fchmod(folder, 0o700)
            for entry in os.listdir(folder):
                beneath.remove(folder, entry)
            self._clear_attributes(folder)

    def _clear_attributes(self, folder: int) -> None:
        """Leave nothing of a program in what the file system keeps beside the files."""
        os.fchmod(folder, 0o700)
        if self._uid is not None:
            os.fchown(folder, self._uid, self._uid)
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
        os.utime(folder)


def _is_at(descriptor: int, name: str, parent: int | None = None) -> bool:
    """Whether an open folder is what a name leads to."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and os.path.samestat(found, os.fstat(descriptor))
