"""Layers between a program and the machine, each tried before it is relied on. Runs with the standard library alone.

Once for all programs, the zygote moves into a file tree that holds the system's programs and the interpreter and
nothing else of the machine, read-only. Each worker adds namespaces of
its own; each program gives up what it could use against them (`confine`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from rl.services.sandbox import cgroup, kernel, landlock, seccomp
from rl.services.sandbox.file_tree import BOX, DEVICES, NETWORK_SETTINGS, SETTINGS, SYSTEM, build_tree
from rl.services.sandbox.processes import Processes, become_subreaper

MAX_UIDS = 1536
"""Workers and sessions of a zygote with a user of their own."""
_FIRST_UID, _UID_RANGES = 20000, 29
MAX_PROCESSES = 64
_MAX_OPEN_FILES = 256
_MAX_FILE_BYTES = 64 << 20


@dataclass(slots=True, frozen=True)
class Isolation:
    """What was found to work, for the workers."""

    layers: dict[str, bool]
    """By the names that `GET /health` shows."""
    namespaces: int
    """Those that each worker enters, as flags of unshare(2)."""
    first_uid: int
    filter: bytes
    """Of system calls, for the layer `seccomp`."""
    allow_internet: bool
    """Sockets are not denied: the network is allowed, or a namespace without one holds them."""
    groups: cgroup.TopGroup | None
    """For the layer `cgroup`."""


def missing_layers(layers: dict[str, bool], *, allow_network: bool) -> list[str]:
    """What a program could abuse on this machine, by the names of layers; empty where all holds.

    A mount namespace or Landlock keep files, a user of its own or a user namespace the identity, and bubblewrap stands
    for the namespaces that it makes.

    Args:
        layers: As `Isolation.layers`.
        allow_network: The network is not to be kept from programs.

    Returns:
        Names joined by " or " where one of several would do.
    """
    has_bubblewrap = layers.get("bubblewrap", False)
    wanted = ["rlimits", "process_limit", "no_new_privileges", "seccomp", "own_uid or user", "pid", "ipc"]
    wanted += ["mount or landlock"] + ["network"] * (not allow_network)
    replaced = {"own_uid or user", "pid", "ipc", "mount or landlock", "network"} if has_bubblewrap else set()
    return [w for w in wanted if w not in replaced and not any(layers.get(name) for name in w.split(" or "))]


def prepare(directory: str, *, allow_network: bool, is_wrapped: bool) -> Isolation:
    """Find out what works, and move this process into the private tree.

    Args:
        directory: A folder of the server's, empty; the tree is mounted over it, in this process's view alone.
        allow_network: Leave programs on the machine's network.
        is_wrapped: This process lives inside bubblewrap.

    Returns:
        What the workers and programs shall use.
    """
    groups = cgroup.make_top_group()
    uid, is_root = os.geteuid(), os.geteuid() == 0
    first_uid = _FIRST_UID + os.getpid() % _UID_RANGES * MAX_UIDS
    user = not _works(lambda: _enter(kernel.CLONE_NEWPID, None)) and _works(lambda: _enter(kernel.CLONE_NEWUSER, uid))
    own_user = kernel.CLONE_NEWUSER if user else 0

    def move() -> None:
        _enter(own_user | kernel.CLONE_NEWNS, uid if user else None)
        build_tree(directory, uid=first_uid if is_root else uid, allow_network=allow_network)

    layers = {"bubblewrap": is_wrapped, "cgroup": groups is not None, "user": user, "mount": _works(move)}
    if layers["mount"]:
        move()
    namespaces = own_user | (kernel.CLONE_NEWNS if layers["mount"] else 0)
    kinds = {"pid": kernel.CLONE_NEWPID, "ipc": kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS}
    if not allow_network:
        kinds["network"] = kernel.CLONE_NEWNET
    for name, flags in kinds.items():
        layers[name] = _works(partial(_enter, own_user | flags, uid if user else None))
        namespaces |= flags if layers[name] else 0
    layers["own_uid"] = is_root and _works(lambda: _try_uid(first_uid))
    layers["process_limit"] = layers["own_uid"] or (user and not is_root)  # the kernel never limits root's
    allow_internet = allow_network or layers["network"]
    code = _try_rules(layers, directory, allow_internet=allow_internet)
    if not allow_network:
        layers["network"] = layers["network"] or layers["seccomp"]  # which denies sockets where it has to
    return Isolation(layers, namespaces, first_uid, code, allow_internet, groups)


def enter_namespaces(isolation: Isolation) -> None:
    """Give a worker namespaces of its own; its next child is process 1 of the new pid namespace.

    Raises:
        OSError: Refused, though it worked before.
    """
    if isolation.namespaces:
        _enter(isolation.namespaces, os.geteuid() if isolation.layers["user"] else None, with_child=False)


def furnish(isolation: Isolation) -> Processes:
    """As process 1 of the namespaces: hide other processes, and give the host a name of no meaning.

    Returns:
        The worker's view of its programs' processes, which those may not have.

    Raises:
        OSError: This process does not become the parent of orphans.
    """
    layers = isolation.layers
    if layers["user"]:  # inotify is counted by user, and all workers have the same
        with contextlib.suppress(OSError), open("/proc/sys/user/max_inotify_instances", "w") as file:
            file.write("32")
    if layers["ipc"]:
        with contextlib.suppress(OSError):
            socket.sethostname("sandbox")
    if not layers["pid"]:
        become_subreaper()
    proc, is_private = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), not layers["pid"]
    if layers["mount"]:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        try:
            if not layers["pid"]:
                raise OSError("other processes would be seen in it")
            kernel.mount("proc", "/proc", "proc", flags, "hidepid=2,subset=pid")
            os.close(proc)
            proc, is_private = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), True
        except OSError:  # also where parts of the machine's own are covered, as in a container
            kernel.mount("tmpfs", "/proc", "tmpfs", flags, "size=4k,mode=555")
    return Processes(proc, has_pid_namespace=layers["pid"], is_private=is_private)


def build_file_rules(isolation: Isolation, folders: Iterable[str]) -> int | None:
    """Landlock's rules for the programs of a worker.

    Args:
        isolation: What works.
        folders: What they may write to, where a mount namespace does not say so.

    Returns:
        A descriptor for `confine`; None without the layer `landlock`.
    """
    if not isolation.layers["landlock"]:
        return None
    return _file_rules(folders, is_private=isolation.layers["mount"], allow_internet=isolation.allow_internet)


def confine(isolation: Isolation, uid: int, file_rules: int | None) -> None:
    """Become a program's process: without rights, and without a way to get any.

    Args:
        isolation: What works.
        uid: The program's user, for the layer `own_uid`.
        file_rules: From `build_file_rules`; closed here.

    Raises:
        OSError: Refused, though it worked before.
    """
    layers = isolation.layers
    if layers["process_limit"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    if layers["own_uid"]:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # its own /proc/self belongs to it
    if layers["no_new_privileges"]:
        _forbid_new_privileges()
    if file_rules is not None:
        landlock.restrict(file_rules)
        os.close(file_rules)
    if layers["seccomp"]:
        seccomp.install(isolation.filter)


def limit_resources(memory_bytes: int | None, cpu_s: int | None) -> None:
    """Limit what each process of a program may use.

    Args:
        memory_bytes: Of address space; None for programs that reserve more than they use.
        cpu_s: Seconds of processor time; None for an interpreter that goes on.

    Raises:
        OSError: Refused.
    """
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: _MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        if value is not None:
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))


def _try_rules(layers: dict[str, bool], directory: str, *, allow_internet: bool) -> bytes:
    """Try what a program puts on itself; returns the filter of system calls."""
    code = b""
    with contextlib.suppress(KeyError):  # a machine whose calls have no numbers here
        code = seccomp.build_filter(allow_internet=allow_internet)
    layers["rlimits"] = _works(lambda: limit_resources(_MAX_FILE_BYTES * 16, 60))
    layers["no_new_privileges"] = _works(_forbid_new_privileges)
    layers["seccomp"] = bool(code) and _works(partial(_filter_calls, code))
    layers["landlock"] = _works(partial(_restrict_files, [directory], layers["mount"]))
    return code


def _works(attempt: Callable[[], object]) -> bool:
    """Whether an attempt succeeds, made in a process of its own."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError, KeyError):
            attempt()
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _enter(flags: int, uid: int | None, *, with_child: bool = True) -> None:
    gid = os.getegid()
    kernel.unshare(flags)
    if uid is not None:
        kernel.map_own_ids(uid, gid)
    if with_child and flags & kernel.CLONE_NEWPID and not _works(lambda: None):
        raise OSError("no process starts in the namespace")


def _try_uid(uid: int) -> None:
    """Whether another user than root can read the interpreter's libraries."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    for path in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)):
        os.listdir(path)


def _forbid_new_privileges() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _filter_calls(code: bytes) -> None:
    _forbid_new_privileges()
    seccomp.install(code)


def _restrict_files(folders: Iterable[str], is_private: bool) -> None:
    _forbid_new_privileges()
    landlock.restrict(_file_rules(folders, is_private=is_private, allow_internet=True))


def _file_rules(folders: Iterable[str], *, is_private: bool, allow_internet: bool) -> int:
    devices = [f"/dev/{name}" for name in DEVICES]
    if is_private:
        return landlock.build_rules(["/"], [BOX, *devices], allow_internet=allow_internet)
    settings = [f"/etc/{name}" for name in (*SETTINGS, *NETWORK_SETTINGS, "passwd", "group")]
    readable = [*SYSTEM, sys.prefix, sys.base_prefix, *settings]
    return landlock.build_rules(readable, [*folders, *devices], allow_internet=allow_internet)
