"""Builds the file tree of programs: the system and the interpreter, read-only, nothing else. Standard library only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rl.services.sandbox import kernel

BOX = "/box"
"""Mount point of the one writable folder in the tree."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = (
    *("alternatives", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf", "protocols", "services"),
    "ssl/openssl.cnf",  # node fails if it may not read this, but not if it is missing
)
"""Files of /etc that programs need."""
NETWORK_SETTINGS = ("hosts", "resolv.conf", "ssl/certs", "ca-certificates")
DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "shm": f"{BOX}/run/shm"}
_USERS = "root:x:0:0::/:/usr/sbin/nologin\nsandbox:x:{uid}:{uid}::{box}/run/work:/bin/bash\n"


def build_tree(directory: str, *, uid: int, allow_network: bool) -> None:
    """Make a new root in memory and enter it, in this process's mount namespace.

    Args:
        directory: An empty folder to mount the tree on.
        uid: User id with the name `sandbox`.
        allow_network: Include the network settings.
    """
    previous = os.umask(0o022)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", directory, "tmpfs", kernel.MS_NOSUID, "mode=755,size=1m")
    settings = [f"/etc/{name}" for name in (*SETTINGS, *(NETWORK_SETTINGS if allow_network else ()))]
    trees = {*SYSTEM, sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)}
    for path in _outermost(trees):
        _bind(path, directory + path)
    for path in (*settings, *(f"/dev/{name}" for name in DEVICES)):
        _bind(os.path.realpath(path), directory + path)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{directory}/dev/{name}")
    with open(f"{directory}/etc/passwd", "w") as file:
        file.write(_USERS.format(uid=uid, box=BOX))
    for path in (f"{BOX}/run", "/proc", "/var"):
        os.makedirs(directory + path, exist_ok=True)
    for path in ("/tmp", "/var/tmp"):
        if not os.path.lexists(directory + path):  # it exists, read-only, if the interpreter is in it
            os.symlink(f"{BOX}/run/tmp", directory + path)
    kernel.make_read_only(directory)
    kernel.mount("/proc", f"{directory}/proc", None, kernel.MS_BIND | kernel.MS_REC)  # the workers cover it
    kernel.change_root(directory)
    os.umask(previous)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Leave out paths below another path, since a mount of that path includes them."""
    chosen: list[str] = []
    for path in sorted(path.rstrip("/") for path in paths):
        if path and not any(path == other or path.startswith(other + "/") for other in chosen):
            chosen.append(path)
    return chosen


def _bind(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif os.path.exists(source):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    else:
        return
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
