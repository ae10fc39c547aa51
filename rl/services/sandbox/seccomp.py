"""A filter that denies system calls which programs do not need and attacks use. Standard library only.

The filter is a classic BPF program and needs no library. Denied calls fail with EPERM, and the program continues.
Calls that change a process by its id, such as its limits, are allowed only for the caller and for the program's first
process. Another id could be the worker's, from which later programs are forked. `clone3` fails with ENOSYS, because
its flags are in memory, where a filter cannot read them; the C library then uses `clone`. Calls of another
architecture (i386, x32) kill the program.

Source: seccomp(2); the choice of calls follows the default profile of Docker (moby, profiles/seccomp).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct

from rl.services.sandbox import kernel

_DENIED = {  # name: number on x86_64, on aarch64; None if the architecture has no such call
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "vhangup": (153, 58),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "lookup_dcookie": (212, 18),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "quotactl_fd": (443, 443),
    "io_setup": (206, 0),
}
_UNCOUNTED_MEMORY = {  # memory that outlives the program, or counts for no process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
}
_OF_ANY_PROCESS = {  # name: number on x86_64, on aarch64, index of the argument with the process id
    "prlimit64": (302, 261, 0),
    "sched_setaffinity": (203, 122, 0),
    "sched_setscheduler": (144, 119, 0),
    "sched_setparam": (142, 118, 0),
    "sched_setattr": (314, 274, 0),
    "get_robust_list": (274, 100, 0),
    "setpriority": (141, 140, 1),
    "ioprio_set": (251, 30, 1),
}
_KINDS_OF_PROCESSES = {"setpriority": [0, 1], "ioprio_set": [1, 2]}
"""Allowed first arguments: a process, or a group, which is the caller's for id 0; not all processes of a user."""
_PRCTL, _PR_SCHED_CORE = (157, 167), 62
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3 = (41, 198), (53, 199), (56, 220), (435, 435)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_BIT = 0x40000000
_NAMESPACE_FLAGS = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | 0x02000000  # of control groups
)
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_FIRST_PROCESS = 0xFFF1F1F1
"""Placeholder for its process id."""
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_MODE_FILTER = 2


def build_filter(*, allow_internet: bool) -> bytes:
    """Build the filter.

    Args:
        allow_internet: Allow IPv4 and IPv6 sockets, in addition to Unix and netlink. All other families are denied,
            because a network namespace does not isolate all of them: vsock reaches a virtual machine's host.

    Returns:
        An array of `struct sock_filter`.

    Raises:
        KeyError: The architecture is unknown.
    """
    column, architecture = _ARCHITECTURES[platform.machine()]
    families = [socket.AF_UNIX, socket.AF_NETLINK]
    if allow_internet:
        families += [socket.AF_INET, socket.AF_INET6]
    code = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_AT_LEAST, _X32_BIT, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for call in (_SOCKET, _SOCKETPAIR):
        code += _allow_only(call[column], [(0, [int(family) for family in families])])
    for name, (*numbers, argument) in _OF_ANY_PROCESS.items():
        kinds = [(0, _KINDS_OF_PROCESSES[name])] if name in _KINDS_OF_PROCESSES else []
        code += _allow_only(numbers[column], [*kinds, (argument, [0, _FIRST_PROCESS])])
    code += [
        _step(_EQUAL, _PRCTL[column], 0, 4),
        _load_argument(0),
        _step(_EQUAL, _PR_SCHED_CORE, 0, 1),
        _step(_RETURN, _FAIL | errno.EPERM),
        _step(_RETURN, _ALLOW),
        _step(_EQUAL, _CLONE[column], 0, 4),
        _load_argument(0),
        _step(_ANY_BIT, _NAMESPACE_FLAGS, 0, 1),
        _step(_RETURN, _FAIL | errno.EPERM),
        _step(_RETURN, _ALLOW),
        _step(_EQUAL, _CLONE3[column], 0, 1),
        _step(_RETURN, _FAIL | errno.ENOSYS),
    ]
    denied = [number for call in (_DENIED | _UNCOUNTED_MEMORY).values() if (number := call[column]) is not None]
    for i, number in enumerate(denied):
        code.append(_step(_EQUAL, number, len(denied) - i, 0))
    code += [_step(_RETURN, _ALLOW), _step(_RETURN, _FAIL | errno.EPERM)]
    return b"".join(code)


def install(code: bytes) -> None:
    """Apply the filter to this process, the program's first, and to all its children. Needs `no_new_privs`."""
    code = code.replace(struct.pack("I", _FIRST_PROCESS), struct.pack("I", os.getpid()))
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    kernel.prctl(kernel.PR_SET_SECCOMP, _MODE_FILTER, program)


def _allow_only(number: int, conditions: list[tuple[int, list[int]]]) -> list[bytes]:
    """Deny a call unless each of these arguments has one of its allowed values."""
    body: list[bytes] = []
    for argument, allowed in conditions:
        body.append(_load_argument(argument))
        body += [_step(_EQUAL, value, len(allowed) - i, 0) for i, value in enumerate(allowed)]
        body.append(_step(_RETURN, _FAIL | errno.EPERM))
    body.append(_step(_RETURN, _ALLOW))
    return [_step(_EQUAL, number, 0, len(body)), *body]


def _load_argument(index: int) -> bytes:
    """Load the lower half of an argument, which is all that the kernel reads of an `int`."""
    return _step(_LOAD, _ARGUMENTS_AT + 8 * index)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", operation, if_true, if_false, value)
