"""Layers of isolation between a program and the machine, each tried before use. Standard library only.

The zygote moves into a read-only file tree with the system's programs and the interpreter, once for all programs. Each
worker enters namespaces of its own. Each program drops the rights that could help it out of them (`confine`).
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
"""User ids of one zygote, one for each worker and session."""
_FIRST_UID, _UID_RANGES = 20000, 29
MAX_PROCESSES = 64
_MAX_OPEN_FILES = 256
_MAX_FILE_BYTES = 64 << 20


@dataclass(slots=True, frozen=True)
class Isolation:
    """The isolation that works on this machine."""

    layers: dict[str, bool]
    """Whether each layer works, by the names that `GET /health` shows."""
    namespaces: int
    """Namespaces that each worker enters, as flags of unshare(2)."""
    first_uid: int
    filter: bytes
    """Filter of system calls, for the layer `seccomp`."""
    allow_internet: bool
    """Programs may create internet sockets: the network is allowed, or a network namespace isolates them."""
    groups: cgroup.TopGroup | None
    """For the layer `cgroup`."""


def missing_layers(layers: dict[str, bool], *, allow_network: bool) -> list[str]:
    """Names of the layers that isolation needs and this machine lacks; empty if it is complete.

    Either a mount namespace or Landlock protects files. Either a user id of its own or a user namespace separates
    programs. Bubblewrap replaces the namespaces that it makes.

    Args:
        layers: As `Isolation.layers`.
        allow_network: Programs may use the network.

    Returns:
        Names, joined by " or " if one of several would do.
    """
    has_bubblewrap = layers.get("bubblewrap", False)
    wanted = ["rlimits", "process_limit", "no_new_privileges", "seccomp", "own_uid or user", "pid", "ipc"]
    wanted += ["mount or landlock"] + ["network"] * (not allow_network)
    replaced = {"own_uid or user", "pid", "ipc", "mount or landlock", "network"} if has_bubblewrap else set()
    return [w for w in wanted if w not in replaced and not any(layers.get(name) for name in w.split(" or "))]


def prepare(directory: str, *, allow_network: bool, is_wrapped: bool) -> Isolation:
    """Find out which layers work, and move this process into the private file tree.

    Args:
        directory: An empty folder of the server. The tree is mounted there, visible to this process only.
        allow_network: Give programs the machine's network.
        is_wrapped: This process runs inside bubblewrap.
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
    layers["process_limit"] = layers["own_uid"] or (user and not is_root)  # the kernel does not limit root's processes
    allow_internet = allow_network or layers["network"]
    code = _try_rules(layers, directory, allow_internet=allow_internet)
    if not allow_network:
        layers["network"] = layers["network"] or layers["seccomp"]  # seccomp denies sockets if there is no namespace
    return Isolation(layers, namespaces, first_uid, code, allow_internet, groups)


def enter_namespaces(isolation: Isolation) -> None:
    """Enter new namespaces. The next child of this process is process 1 of the new pid namespace."""
    if isolation.namespaces:
        _enter(isolation.namespaces, os.geteuid() if isolation.layers["user"] else None, with_child=False)


def set_up_namespaces(isolation: Isolation) -> Processes:
    """Hide other processes and the host's name from programs. Runs in process 1 of the namespaces.

    Returns:
        The worker's view of its programs' processes, which the programs do not share.
    """
    layers = isolation.layers
    if layers["user"]:  # inotify is limited per user, and all workers have the same
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
        except OSError:  # also if parts of the machine's /proc are covered, as in a container
            kernel.mount("tmpfs", "/proc", "tmpfs", flags, "size=4k,mode=555")
    return Processes(proc, has_pid_namespace=layers["pid"], is_private=is_private)


def build_file_rules(isolation: Isolation, folders: Iterable[str]) -> int | None:
    """Build Landlock's rules for the programs of a worker.

    Args:
        isolation: The isolation that works.
        folders: Writable folders, used if there is no mount namespace.

    Returns:
        A descriptor for `confine`; None without the layer `landlock`.
    """
    if not isolation.layers["landlock"]:
        return None
    return _file_rules(folders, is_private=isolation.layers["mount"], allow_internet=isolation.allow_internet)


def confine(isolation: Isolation, uid: int, file_rules: int | None) -> None:
    """Drop all rights of this process, and every way to regain them, before it runs a program.

    Args:
        isolation: The isolation that works.
        uid: The program's user id, for the layer `own_uid`.
        file_rules: From `build_file_rules`; closed here.
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
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # so that the process owns its own /proc/self
    if layers["no_new_privileges"]:
        _forbid_new_privileges()
    if file_rules is not None:
        landlock.restrict(file_rules)
        os.close(file_rules)
    if layers["seccomp"]:
        seccomp.install(isolation.filter)


def limit_resources(memory_bytes: int | None, cpu_s: int | None) -> None:
    """Set the limits of each process of a program.

    Args:
        memory_bytes: Address space; None for programs that reserve more than they use.
        cpu_s: Processor time, seconds; None for a session.
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
    """Try the layers that a program applies to itself; returns the filter of system calls."""
    code = b""
    with contextlib.suppress(KeyError):  # an unknown processor architecture
        code = seccomp.build_filter(allow_internet=allow_internet)
    layers["rlimits"] = _works(lambda: limit_resources(_MAX_FILE_BYTES * 16, 60))
    layers["no_new_privileges"] = _works(_forbid_new_privileges)
    layers["seccomp"] = bool(code) and _works(partial(_filter_calls, code))
    layers["landlock"] = _works(partial(_restrict_files, [directory], layers["mount"]))
    return code


def _works(attempt: Callable[[], object]) -> bool:
    """Whether an attempt succeeds, in a process of its own."""
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
    """Read the interpreter's libraries as another user than root."""
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
