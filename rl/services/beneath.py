"""Files beneath a folder that somebody else may have filled: no link is followed. Standard library alone.

A folder is an open descriptor, and a path is walked name by name, each opened with O_NOFOLLOW from the one before. A
link anywhere in a path is an error, and renaming a folder meanwhile leads nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A pipe without another end does not block."""


def open_folder(name: str, parent: int | None = None) -> int:
    """Open a folder; the last component must not be a link.

    Args:
        name: A path, or a name in the parent.
        parent: Its descriptor.

    Raises:
        OSError: It is something else, or cannot be read.
    """
    return os.open(name, _FOLDER, dir_fd=parent)


def write_file(root: int, path: str, content: bytes, owner: int | None) -> None:
    """Write a file, making the folders above it.

    Args:
        root: The folder.
        path: Relative, checked to hold no `..`.
        content: The file's bytes.
        owner: User and group of what is made; None for this process's own.

    Raises:
        OSError: It contradicts what is there, a link is in its way, or there is no space.
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
            raise FileExistsError(f"{path} is no regular file")
        stream.write(content)
        if owner is not None:
            os.fchown(file, owner, owner)


def make_folder(parent: int, name: str, owner: int | None) -> None:
    """Make a folder that only its owner may enter.

    Raises:
        OSError: It exists, or cannot be made.
    """
    os.mkdir(name, 0o700, dir_fd=parent)
    if owner is not None:
        os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)


def read_files(root: int, paths: Iterable[str], limit: int, owner: int | None = None) -> dict[str, bytes]:
    """Regular files; a link, a pipe, a device, and what is not the owner's count as missing.

    Args:
        root: The folder.
        paths: As asked.
        limit: Bytes of all together; what would go beyond counts as missing.
        owner: The user whose files are read; None for anybody's.

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
    """Remove a file, a link or a tree of any depth, also one whose folders are closed to their owner.

    Args:
        parent: The folder that holds it. A deep tree is flattened into it, so that no path becomes too long.
        name: In the parent.

    Raises:
        OSError: Something in it cannot be removed.
    """
    queue = [name]
    while queue:
        current = queue.pop()
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it too
            queue += _empty(parent, current)
            os.rmdir(current, dir_fd=parent)


def _empty(parent: int, name: str) -> list[str]:
    """Empty a folder; those in it become the parent's, under new names, which are returned. Other things go."""
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
                    os.close(_open_closed_folder(entry, folder))  # to be moved, it must be writable
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
    """Open a folder to change it, whatever its mode; links are not followed.

    Raises:
        NotADirectoryError: It is something else, or a link.
        OSError: It belongs to somebody else.
    """
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # the very folder that was opened, wherever its name leads now
        return open_folder(".", handle)
    finally:
        os.close(handle)
