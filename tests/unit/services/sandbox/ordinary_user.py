"""Runs Python code as an ordinary user, on a machine that may forbid new namespaces.

Called with the code and `forbid` or `allow`. As root it first opens the way to the interpreter
and changes the user.
"""

import os
import sys
from pathlib import Path

from rl.services.sandbox import kernel
from tests.unit.services.sandbox.refusals import refuse

_ROOT = Path(__file__).resolve().parents[4]
_NOBODY = 65534


def become_nobody() -> None:
    """In a mount namespace: folders above the interpreter that others may not enter are replaced by empty ones."""
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


if __name__ == "__main__":
    if os.geteuid() == 0:
        become_nobody()
    if sys.argv[2] == "forbid":
        refuse(["user", "mount", "pid", "ipc", "network"])
    exec(sys.argv[1])
