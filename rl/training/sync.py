"""Files that are on the disk, not only in the memory of the machine, when a step of a checkpoint ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What mounted object stores answer for a folder, whose names they keep in another way."""


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk (fsync).

    Raises:
        OSError: It could not be written, because the disk is full for example.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, so that a rename in it survives a power failure.

    Raises:
        OSError: They could not be written.
    """
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
