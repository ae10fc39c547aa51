"""Linux system calls that isolation needs and Python lacks. Standard library only. A refused call raises OSError."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_SECUREBITS = 4, 22, 28
PR_CAPBSET_READ = 23
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47

_MNT_DETACH = 2
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 0x1, 0x2
_MOUNT_SETATTR = 442
"""Recent calls have the same number on all architectures."""
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_AMBIENT_CLEAR_ALL = 4
_CAP_SETPCAP = 8
_SECBIT_NOROOT_AND_FIXUP_LOCKED = 0x2F

_IPC_RMID, _LARGEST_STATUS_BYTES = 0, 256
_SHM_INFO, _SHM_STAT, _MSG_INFO, _MSG_STAT, _SEM_INFO, _SEM_STAT = 14, 13, 12, 11, 19, 18
_SYSINFO_BYTES, _SHARED_AT, _UNIT_AT = 128, 48, 104
"""Layout of `struct sysinfo` on 64-bit machines."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.syscall.restype = ctypes.c_long


def unshare(flags: int) -> None:
    """Enter new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def prctl(option: int, value: int, argument: Any = 0) -> int:
    """Set or read an attribute of this process."""
    return _check(_libc.prctl(option, ctypes.c_ulong(value), argument, 0, 0), f"prctl {option}")


def syscall(number: int, *arguments: Any) -> int:
    """Make a call for which the C library has no function."""
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system, or with `MS_BIND` a part of another."""
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check(_libc.mount(*texts, flags, options.encode() if options is not None else None), f"mount on {target}")


def unmount(target: str) -> None:
    """Detach a file system. It ends with the last process that uses it."""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), f"unmount of {target}")


def make_read_only(tree: str) -> None:
    """Make a mounted tree and all mounts below read-only, and ignore set-user-id bits. Needs Linux 5.12."""
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    syscall(_MOUNT_SETATTR, -100, tree.encode(), _AT_RECURSIVE, attributes, len(attributes))


def change_root(directory: str) -> None:
    """Make a mounted folder the root, and detach the old root.

    Raises:
        KeyError: The call's number on this architecture is unknown.
    """
    os.chdir(directory)
    syscall(_PIVOT_ROOT[platform.machine()], b".", b".")  # the old root covers the new one, as in runc
    unmount(".")
    os.chdir("/")


def remove_shared_objects() -> None:
    """Remove the namespace's System V shared memory, queues and semaphores, which outlive their creators."""
    unused = ctypes.create_string_buffer(_LARGEST_STATUS_BYTES)
    calls = (
        (_libc.shmctl, _SHM_INFO, _SHM_STAT),
        (_libc.msgctl, _MSG_INFO, _MSG_STAT),
        (lambda number, command, status: _libc.semctl(number, 0, command, status), _SEM_INFO, _SEM_STAT),
    )
    for control, info, stat in calls:
        for i in range(control(0, info, unused) + 1):
            if (number := control(i, stat, unused)) >= 0:
                control(number, _IPC_RMID, unused)


def shared_memory_bytes() -> int:
    """Shared memory and files in memory, of the whole machine."""
    content = ctypes.create_string_buffer(_SYSINFO_BYTES)
    _check(_libc.sysinfo(content), "sysinfo")
    return int(struct.unpack_from("L", content, _SHARED_AT)[0] * struct.unpack_from("I", content, _UNIT_AT)[0])


def map_own_ids(uid: int, gid: int) -> None:
    """Map only this user and group into a new user namespace, with the same numbers."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_capabilities() -> None:
    """Drop all capabilities, including those that root would regain at an exec."""
    if os.geteuid() == 0 and prctl(PR_CAPBSET_READ, _CAP_SETPCAP):  # inside bubblewrap none can be regained
        prctl(PR_SET_SECUREBITS, _SECBIT_NOROOT_AND_FIXUP_LOCKED)
    prctl(PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _check(_libc.capset(header, nothing), "capset")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)
