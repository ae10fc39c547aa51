"""The sandbox's folder on the machine. A server that is killed leaves its own behind; the next one removes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from rl.services import beneath

_PREFIX, _LOCK = "turnwise-sandbox-", "owner"
_ATTEMPTS = 5


class ServerFolder:
    """A folder of this process under the system's folder for temporary files, by a lock that ends with the process."""

    def __init__(self) -> None:
        """Make it, and remove those whose owner is gone.

        Raises:
            OSError: There is no space, or no folder for temporary files.
        """
        _remove_abandoned()
        self.path, self._lock = _claim()
        self.path.chmod(0o711)

    def close(self) -> None:
        """Remove it with all that it holds."""
        _remove(self.path)
        os.close(self._lock)


def _claim() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError):  # another server took it for abandoned before it was locked
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (path / _LOCK).exists():
                return path, lock
            os.close(lock)


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # another user's, or not locked yet
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        except BlockingIOError:  # its owner lives
            continue
        finally:
            os.close(lock)


def _remove(path: Path) -> None:
    """Programs may have left links in it, and folders deeper than `shutil.rmtree` can follow."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(OSError):  # workers that end meanwhile remove their own
            folder = beneath.open_folder(str(path))
            try:
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        beneath.remove(folder, name)
            finally:
                os.close(folder)
            os.rmdir(path)
            return
