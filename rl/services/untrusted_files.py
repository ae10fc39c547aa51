"""Reads, writes and removes files in a folder with untrusted content, without following links. Standard library only.

A folder is an open descriptor. A path is opened name by name, each with O_NOFOLLOW relative to the one before. So a
link anywhere in a path is an error, and renaming a folder in between does not redirect the path.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: opening a pipe without a writer does not block."""


def open_folder(name: str, parent: int | None = None) -> int:
    """Open a folder; the last component must not be a link.

    Args:
        name: A path, or a name in the parent.
        parent: Descriptor of the parent.
    """
    return os.open(name, _FOLDER, dir_fd=parent)


def write_file(root: int, path: str, content: bytes, owner: int | None) -> None:
    """Write a file, and make its parent folders.

    Args:
        root: Descriptor of the folder.
        path: Relative, without `..`.
        content: The file's bytes.
        owner: User and group of the new file and folders; None for this process's.

    Raises:
        OSError: The path conflicts with another file or contains a link, or there is no space.
    """
    *parents, last = (part for part in path.split("/") if part not in ("", "."))
    folder = os.dup(root)
    try:
        for name in parents:
            with contextlib.suppress(FileExistsError):
                make_folder(folder, name, owner)
            above, folder = folder, open_folder(name, folder)
            os.close(above)
        file = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FILE, 0o700, dir_fd=folder)
    finally:
        os.close(folder)
    with open(file, "wb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise FileExistsError(f"{path} is not a regular file")
        stream.write(content)
        if owner is not None:
            os.fchown(file, owner, owner)


def make_folder(parent: int, name: str, owner: int | None) -> None:
    """Make a folder that only its owner may enter."""
    os.mkdir(name, 0o700, dir_fd=parent)
    if owner is not None:
        os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)


def read_files(root: int, paths: Iterable[str], limit: int, owner: int | None = None) -> dict[str, bytes]:
    """Read regular files. Links, pipes, devices and files of other owners count as missing.

    Args:
        root: Descriptor of the folder.
        paths: Relative paths.
        limit: Bytes of all files together. A file that would exceed the limit counts as missing.
        owner: User id of the files' owner; None for any.

    Returns:
        Contents by path.
    """
    found: dict[str, bytes] = {}
    for path in dict.fromkeys(paths):
        with contextlib.suppress(OSError, ValueError):
            content = _read_file(root, path, limit, owner)
            if content is not None:
                found[path] = content
                limit -= len(content)
    return found


def remove(parent: int, name: str) -> None:
    """Remove a file, a link or a tree of any depth, even if its folders are not accessible to their owner.

    Args:
        parent: Descriptor of the parent. A deep tree is flattened into it, so that no path becomes too long.
        name: A name in the parent.

    Raises:
        OSError: Something cannot be removed.
    """
    queue = [name]
    while queue:
        current = queue.pop()
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            queue += _empty(parent, current)
            os.rmdir(current, dir_fd=parent)


def _empty(parent: int, name: str) -> list[str]:
    """Remove a folder's files and move its folders to the parent, under new names, which are returned."""
    try:
        folder = _open_closed_folder(name, parent)
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return []
    moved = []
    try:
        for entry in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.close(_open_closed_folder(entry, folder))  # makes it writable, which a move needs
                    new = f".{os.urandom(12).hex()}"
                    os.rename(entry, new, src_dir_fd=folder, dst_dir_fd=parent)
                    moved.append(new)
                else:
                    os.unlink(entry, dir_fd=folder)
    finally:
        os.close(folder)
    return moved


def _read_file(root: int, path: str, limit: int, owner: int | None) -> bytes | None:
    *parents, last = (part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or ".." in (*parents, last):
        return None
    folder = os.dup(root)
    try:
        for name in parents:
            above, folder = folder, open_folder(name, folder)
            os.close(above)
        file = os.open(last, os.O_RDONLY | _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or owner not in (None, status.st_uid):
            return None
        with open(file, "rb", closefd=False) as stream:
            content = stream.read(limit + 1)
        return content if len(content) <= limit else None
    finally:
        os.close(file)


def _open_closed_folder(name: str, parent: int) -> int:
    """Open a folder and make it accessible to its owner. Links are not followed.

    Raises:
        NotADirectoryError: It is a link or a file.
    """
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # the folder that was opened, even if it was renamed
        return open_folder(".", handle)
    finally:
        os.close(handle)
