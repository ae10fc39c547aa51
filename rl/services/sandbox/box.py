"""The folder that a program may write to, and the transfer of its files. Standard library only.

run/work  the program's working folder and home
run/tmp   for temporary files; also /tmp in a private file tree
run/shm   /dev/shm in a private file tree

A program may write to these three folders but not to `run`, so it cannot replace one of them. If no layer enforces
that (`mount`, `landlock`, `own_uid`), replacing one does no harm: the box holds its folders open and follows no link.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable

from rl.services import untrusted_files
from rl.services.sandbox import kernel
from rl.services.sandbox.file_tree import BOX

MAX_BYTES = 64 << 20
"""Limit for all files together."""
_MAX_FILES, _MANY_FILES = 16384, 64
_FOLDERS = ("work", "tmp", "shm")


class BoxError(OSError):
    """A program has moved the box, which is unusable now."""


class Box:
    """A folder for one program after the other, emptied before each."""

    def __init__(self, directory: str, uid: int | None, *, is_mounted: bool) -> None:
        """Make it.

        Args:
            directory: Its parent on the machine, used if the file tree is not private.
            uid: Its owner; None for this process's user.
            is_mounted: The file tree is private. The folder then lies in memory, with a limit, and ends with its mount.
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
        """Descriptor of the program's folder."""
        return self._open["work"]

    def clear(self) -> None:
        """Empty it. No process may use it any more.

        Raises:
            BoxError: It was moved.
            OSError: It cannot be made again.
        """
        try:
            self._check_place()
            for folder in self._open.values():
                self._clear_shallow(folder)
        except (FileExistsError, IsADirectoryError, PermissionError):
            self._clear_deep()

    def memory_bytes(self) -> int:
        """Memory that its files use."""
        if not self._is_mounted:
            return 0
        used = os.fstatvfs(self._root)
        return (used.f_blocks - used.f_bfree) * used.f_frsize

    def remove(self) -> None:
        """Remove it."""
        if self._is_mounted:
            return  # it ends with the last process in its namespace
        with contextlib.suppress(OSError):
            parent = untrusted_files.open_folder(os.path.dirname(self.root))
            for name in os.listdir(parent):
                if name == os.path.basename(self.root) or _is_at(self._root, name, parent):  # it may have been moved
                    untrusted_files.remove(parent, name)
            os.close(parent)

    def write(self, path: str, content: bytes) -> None:
        """Put a file into the program's folder.

        Args:
            path: Relative, without `..`.
            content: The file's bytes.

        Raises:
            OSError: The path conflicts with another file, or there is no space.
        """
        untrusted_files.write_file(self.work_descriptor, path, content, self._uid)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Read files that the program left; see `untrusted_files.read_files`."""
        return untrusted_files.read_files(self.work_descriptor, paths, MAX_BYTES, self._uid)

    def _fill(self) -> None:
        if self._is_mounted:
            options = f"mode=711,size={MAX_BYTES},nr_inodes={_MAX_FILES}"
            kernel.mount("tmpfs", self.root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        else:
            os.chmod(self.root, 0o711)
        root = untrusted_files.open_folder(self.root)
        for name, path in zip(_FOLDERS, self.folders, strict=True):
            untrusted_files.make_folder(root, name, self._uid)
            if self._is_mounted:  # so that it stays writable when the root becomes read-only
                kernel.mount(path, path, None, kernel.MS_BIND)
            self._open[name] = untrusted_files.open_folder(path)
        self._root = root
        if self._is_mounted:
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount(None, self.root, None, flags)

    def _check_place(self) -> None:
        """Check that a program has not moved the folders or added others. It can without some layers of isolation.

        Raises:
            BoxError: The box was moved.
            FileExistsError: There is something else in it.
        """
        if not _is_at(self._root, self.root):
            raise BoxError(f"{self.root} was moved")
        if set(os.listdir(self._root)) != set(_FOLDERS):
            raise FileExistsError("there are other files next to the folders")
        if not all(_is_at(self._open[name], name, self._root) for name in _FOLDERS):
            raise FileExistsError("a folder was replaced by another")

    def _clear_shallow(self, folder: int) -> None:
        """Remove a few files. That is faster than a new mount, and most programs leave only a file or two."""
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
            untrusted_files.remove(self._root, name)
        for name in _FOLDERS:
            if name not in own:
                os.close(self._open[name])
                untrusted_files.make_folder(self._root, name, self._uid)
                self._open[name] = untrusted_files.open_folder(name, self._root)
            folder = self._open[name]
            os.fchmod(folder, 0o700)
            for entry in os.listdir(folder):
                untrusted_files.remove(folder, entry)
            self._clear_attributes(folder)

    def _clear_attributes(self, folder: int) -> None:
        """Reset the folder's mode, owner, extended attributes and times."""
        os.fchmod(folder, 0o700)
        if self._uid is not None:
            os.fchown(folder, self._uid, self._uid)
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
        os.utime(folder)


def _is_at(descriptor: int, name: str, parent: int | None = None) -> bool:
    """Whether a name leads to an open folder."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and os.path.samestat(found, os.fstat(descriptor))
