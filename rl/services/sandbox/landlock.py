"""File access rules that a process applies to itself and its children, without privileges. Standard library only.

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
"""The rights that apply to files other than folders."""
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NUM_RIGHTS_NOW = 16
_TCP_BIND_AND_CONNECT, _SCOPE_SOCKETS_AND_SIGNALS = 3, 3


def version() -> int:
    """This kernel's version of Landlock; 0 without Landlock."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def build_rules(readable: Iterable[str], writable: Iterable[str], *, allow_internet: bool) -> int:
    """Build rules that allow only these paths and everything below them.

    On recent kernels they also deny TCP, and signals and abstract Unix sockets to processes outside.

    Args:
        readable: Paths to read and execute. Missing ones are skipped.
        writable: Paths with all rights.
        allow_internet: Do not deny TCP.

    Returns:
        A descriptor for `restrict`.

    Raises:
        OSError: The kernel refuses, or has no Landlock.
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
    """Apply the rules to this process. Needs `no_new_privs`."""
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
