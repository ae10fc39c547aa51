"""A temporary folder of a process. If the process is killed, the next one removes its folder."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.services import untrusted_files

_LOCK = "owner"
_ATTEMPTS = 5


class OwnedFolder:
    """A folder of this process. A lock in it ends with the process, and works across containers."""

    def __init__(
        self, prefix: str, parent: Path | None = None, *, on_abandoned: Callable[[Path], None] = lambda path: None
    ) -> None:
        """Make it, and remove folders with the same prefix whose owner is gone.

        Args:
            prefix: Prefix of its name.
            parent: By default the system's folder for temporary files.
            on_abandoned: Called with each folder whose owner is gone, before its removal.
        """
        parent = parent or Path(tempfile.gettempdir())
        _remove_abandoned(parent, prefix, on_abandoned)
        self.path, self._lock = _claim(parent, prefix)

    def close(self) -> None:
        """Remove it and its content."""
        _remove(self.path)
        os.close(self._lock)


@contextmanager
def owned_folder(
    prefix: str, parent: Path | None = None, *, on_abandoned: Callable[[Path], None] = lambda path: None
) -> Iterator[Path]:
    """The path of an `OwnedFolder`, which is removed after the block."""
    folder = OwnedFolder(prefix, parent, on_abandoned=on_abandoned)
    try:
        yield folder.path
    finally:
        folder.close()


def _claim(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another process removed it as abandoned before it was locked
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (path / _LOCK).exists():
                return path, lock
            os.close(lock)


def _remove_abandoned(parent: Path, prefix: str, on_abandoned: Callable[[Path], None]) -> None:
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # another user's, or not locked yet
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                on_abandoned(path)
                _remove(path)
        except BlockingIOError:  # its owner is alive
            continue
        finally:
            os.close(lock)


def _remove(path: Path) -> None:
    """Remove a folder in which programs may have left links, and trees that are too deep for `shutil.rmtree`."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(OSError):  # processes that end at the same time remove their own files
            folder = untrusted_files.open_folder(str(path))
            try:
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        untrusted_files.remove(folder, name)
            finally:
                os.close(folder)
            os.rmdir(path)
            return
