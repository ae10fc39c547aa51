"""Runs Python code as an ordinary user, on a machine that may forbid new namespaces.

Called with the code and `forbid` or `allow`. As root it first opens the way to the interpreter
and changes the user.
"""

import os
import struct
import sys
from pathlib import Path

from rl.services import kernel, seccomp

_ROOT = Path(__file__).resolve().parents[3]
_NOBODY = 65534
_UNSHARE = {"x86_64": 272, "aarch64": 97}


def _become_nobody() -> None:
    """In a mount namespace: folders closed to others on the way to the interpreter hold nothing else."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    for path in {sys.prefix, sys.base_prefix, str(_ROOT)}:
        closed = next((p for p in reversed(Path(path).parents) if not p.stat().st_mode & 0o001), None)
        if closed is not None:
            descriptor = os.open(path, os.O_PATH)
            kernel.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
            os.makedirs(path)
            kernel.mount(f"/proc/self/fd/{descriptor}", path, None, kernel.MS_BIND | kernel.MS_REC)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _forbid_namespaces() -> None:
    """As the filter of a container does."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    steps = [
        (0x20, 0, 0, 0),
        (0x15, 0, 1, _UNSHARE[os.uname().machine]),
        (0x06, 0, 0, 0x00050001),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    seccomp.install(b"".join(struct.pack("HBBI", *step) for step in steps))


if __name__ == "__main__":
    if os.geteuid() == 0:
        _become_nobody()
    if sys.argv[2] == "forbid":
        _forbid_namespaces()
    exec(sys.argv[1])
