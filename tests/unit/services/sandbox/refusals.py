"""Refuses parts of isolation, as some kernels and containers do, for this process and its children."""

import ctypes
import os
import struct

from rl.services.sandbox import kernel

NAMES = ("landlock", "seccomp", "mount", "pid", "ipc", "network", "user", "own_uid")
"""Layers that a filter of system calls can refuse."""
_UNSHARE, _PRCTL, _SECCOMP, _SETRESUID = {
    "x86_64": (272, 157, 317, 117),
    "aarch64": (97, 167, 277, 147),
}[os.uname().machine]
_FLAGS = {
    "mount": kernel.CLONE_NEWNS,
    "pid": kernel.CLONE_NEWPID,
    "ipc": kernel.CLONE_NEWIPC,
    "network": kernel.CLONE_NEWNET,
    "user": kernel.CLONE_NEWUSER,
}
_EPERM, _EINVAL, _ENOSYS = 1, 22, 38


def refuse(names: list[str]) -> None:
    """Make the kernel behave as if it lacked these layers or did not allow them.

    `cgroup` takes root: nothing is seen under /sys/fs/cgroup any more, in a mount namespace.
    """
    if "cgroup" in names:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "size=4k")
    rules: list[tuple[int, int | None, int]] = []  # call, bits of its first argument, error
    rules += [(_UNSHARE, _FLAGS[name], _EPERM) for name in names if name in _FLAGS]
    if "landlock" in names:
        rules += [(number, None, _ENOSYS) for number in (444, 445, 446)]
    if "own_uid" in names:
        rules.append((_SETRESUID, None, _EPERM))
    if "seccomp" in names:
        rules += [(_SECCOMP, None, _ENOSYS)]
    steps = []
    for number, bits, error in rules:
        fail = (0x06, 0, 0, 0x00050000 | error)
        load, test = (0x20, 0, 0, 16), (0x45, 0, 1, bits or 0)
        body = [fail] if bits is None else [load, test, fail, (0x20, 0, 0, 0)]
        steps += [(0x15, 0, len(body), number), *body]
    if "seccomp" in names:  # prctl(PR_SET_SECCOMP)
        fail = (0x06, 0, 0, 0x00050000 | _EINVAL)
        steps += [(0x15, 0, 4, _PRCTL), (0x20, 0, 0, 16), (0x15, 0, 1, kernel.PR_SET_SECCOMP), fail, (0x20, 0, 0, 0)]
    if steps:
        _install([(0x20, 0, 0, 0), *steps, (0x06, 0, 0, 0x7FFF0000)])


def _install(steps: list[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(instructions))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, program)
