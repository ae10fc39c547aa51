import ctypes
import os
import platform
import socket
import struct

import pytest

from rl.services.sandbox import kernel, seccomp

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no numbers of its calls")
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def verdict(number: int, *arguments: int, architecture: int | None = None, allow_internet: bool = True) -> int:
    """Interpret the filter for a call: load, compare, jump, return."""
    memory = dict.fromkeys((16, 24, 32, 40, 48, 56), 0) | {
        0: number,
        4: architecture or ARCHITECTURE[platform.machine()],
    }
    memory |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
    code = seccomp.build_filter(allow_internet=allow_internet)
    steps = [struct.unpack_from("HBBI", code, at) for at in range(0, len(code), 8)]
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        if operation == 0x06:
            return value
        if operation == 0x20:
            accumulator = memory[value]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += if_true if holds else if_false


def number(name: str) -> int:
    column = ("x86_64", "aarch64").index(platform.machine())
    calls = seccomp._DENIED | seccomp._UNCOUNTED_MEMORY
    calls |= {name: numbers[:2] for name, numbers in seccomp._OF_ANY_PROCESS.items()} | {"prctl": seccomp._PRCTL}
    calls |= {"socket": seccomp._SOCKET, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3}
    value = calls[name][column]
    assert value is not None
    return value


@pytest.mark.parametrize(
    "name", ["ptrace", "mount", "unshare", "bpf", "mbind", "lookup_dcookie", "mq_open", "memfd_create"]
)
def test_filter_denies_what_programs_do_not_need(name):
    assert verdict(number(name)) == EPERM


def test_filter_lets_ordinary_calls_through():
    assert {verdict(n) for n in (0, 1, 3, 5, 500)} == {ALLOW}


def test_filter_looks_at_the_flags_of_clone():
    threads = 0x003D0F00
    assert verdict(number("clone"), threads) == ALLOW
    assert verdict(number("clone"), threads | kernel.CLONE_NEWUSER) == EPERM
    assert verdict(number("clone3")) == ENOSYS


@pytest.mark.parametrize(
    ("family", "allow_internet", "expected"),
    [
        (socket.AF_UNIX, False, ALLOW),
        (socket.AF_INET, False, EPERM),
        (socket.AF_INET6, False, EPERM),
        (socket.AF_INET, True, ALLOW),
        (40, True, EPERM),  # vsock
        (38, True, EPERM),  # the kernel's cryptography
    ],
)
def test_filter_allows_families_of_sockets_by_name(family, allow_internet, expected):
    assert verdict(number("socket"), int(family), allow_internet=allow_internet) == expected


def test_filter_ends_programs_that_use_the_calls_of_another_architecture():
    assert verdict(1, architecture=0x40000003) == KILL
    assert verdict(0x40000001) == KILL


def test_install_denies_in_the_kernel():
    pid = os.fork()
    if pid == 0:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(seccomp.build_filter(allow_internet=False))
        libc = ctypes.CDLL(None, use_errno=True)
        denied = libc.unshare(kernel.CLONE_NEWUSER) == -1 and ctypes.get_errno() == 1
        os._exit(0 if denied and os.getpid() else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "name",
    ["prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "get_robust_list"],
)
def test_filter_keeps_other_processes_from_being_changed(name):
    assert verdict(number(name), 0) == ALLOW
    assert {verdict(number(name), pid) for pid in (1, 2, 4711, -1, 1 << 32 | 1)} == {EPERM}
    assert verdict(number(name), 1 << 32) == ALLOW  # the kernel reads only the lower half, which means the caller


@pytest.mark.parametrize(("name", "one", "group", "user"), [("setpriority", 0, 1, 2), ("ioprio_set", 1, 2, 3)])
def test_filter_keeps_the_priority_of_others(name, one, group, user):
    assert [verdict(number(name), kind, 0) for kind in (one, group, user, 9)] == [ALLOW, ALLOW, EPERM, EPERM]
    assert [verdict(number(name), kind, 1) for kind in (one, group, user)] == [EPERM] * 3


def test_filter_denies_the_sharing_of_cores_and_no_other_option():
    assert [verdict(number("prctl"), option) for option in (62, 22, 38, 15)] == [EPERM, ALLOW, ALLOW, ALLOW]


def test_installed_filter_lets_a_program_change_its_first_process_and_no_other():
    libc = ctypes.CDLL(None, use_errno=True)

    def codes():
        first, parent = os.getpid(), os.getppid()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(seccomp.build_filter(allow_internet=False))
        yield libc.prlimit(first, 7, None, None) == 0
        yield libc.prlimit(0, 7, None, None) == 0
        yield libc.setpriority(0, first, 19) == 0
        yield libc.prlimit(parent, 7, None, None) == -1 and ctypes.get_errno() == 1
        child = os.fork()
        if child == 0:
            os._exit(0 if libc.prlimit(first, 7, None, None) == 0 else 1)
        yield os.waitpid(child, 0)[1] == 0
        yield os.sched_getaffinity(parent) != set()

    pid = os.fork()
    if pid == 0:
        os._exit(0 if list(codes()) == [True] * 6 else 1)
    assert os.waitpid(pid, 0)[1] == 0
