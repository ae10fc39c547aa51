"""Rules on files that a process puts on itself and all that it starts, needing no rights. Standard library alone.

Source: landlock(7) and include/uapi/linux/landlock.h of Linux.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from rl.services.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIRECTORY
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
"""What can be allowed of a thing that is no folder."""
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NUM_RIGHTS_NOW = 16
_TCP_BIND_AND_CONNECT, _SCOPE_SOCKETS_AND_SIGNALS = 3, 3


def version() -> int:
    """What this kernel knows of Landlock; 0: it has none."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def build_rules(readable: Iterable[str], writable: Iterable[str], *, allow_internet: bool) -> int:
    """Rules under which only these paths, and what lies beneath, can be reached.

    Where the kernel knows how, they also keep signals and abstract Unix sockets from processes outside.

    Args:
        readable: Paths to read and execute; those that do not exist are left out.
        writable: Paths to do everything with.
        allow_internet: Do not deny TCP.

    Returns:
        A descriptor for `restrict`.

    Raises:
        OSError: Refused, or the kernel has no Landlock.
    """
    known = version()
    rights = (1 << _NUM_RIGHTS.get(known, _NUM_RIGHTS_NOW)) - 1
    attributes = struct.pack("Q", rights)
    if known >= 4:
        attributes += struct.pack("Q", 0 if allow_internet else _TCP_BIND_AND_CONNECT)
    if known >= 6:
        attributes += struct.pack("Q", _SCOPE_SOCKETS_AND_SIGNALS)
    rules = kernel.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    for path in readable:
        _allow(rules, path, rights & _READ)
    for path in writable:
        _allow(rules, path, rights)
    return rules


def restrict(rules: int) -> None:
    """Live under the rules from now on. Needs `no_new_privs`.

    Raises:
        OSError: Refused.
    """
    kernel.syscall(_RESTRICT_SELF, rules, 0)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        kernel.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)
