"""A bare interpreter that forks one isolated process for each program. Runs alone, with the standard library only.

The server sends a job (JSON) with four descriptors: stdin, stdout, stderr and status. For each the zygote forks a
*keeper*, which starts the program in a namespace of its own, waits for its end or its deadline, kills what is left of
it, and writes the outcome (JSON) to status. A status pipe without a reader ends the program too.

    zygote ── keeper ── init (process 1 of the pid namespace) ── program ── whatever it forks
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x00020000, 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_LARGEST_JOB = 1 << 16
_MAX_PROCESSES, _MAX_OPEN_FILES = 64, 256
_MAX_FILE_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_exit_code = [0]


def main() -> None:
    """Prepare, report the isolation that was reached, and serve jobs until the server goes away."""
    control = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    os.chdir("/")
    os.umask(0o077)
    for name in options["preload"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    layers = _isolate(options)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    control.send(json.dumps(layers).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _LARGEST_JOB, 4)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(json.loads(message), descriptors, layers)
            return  # only the program gets here, at its end
        for descriptor in descriptors:
            os.close(descriptor)


def _isolate(options: dict[str, Any]) -> dict[str, bool]:
    """Enter the namespaces that all programs share, and try out those that each gets for itself."""
    is_root = os.geteuid() == 0
    layers = {"user": False, "network": False, "ipc": False, "pid": False, "own_uid": False, "process_limit": False}
    if not _works(_try_pid_namespace):  # not allowed as it is, but perhaps inside a user namespace
        layers["user"] = _enter_user_namespace()
    if not options["allow_network"]:
        layers["network"] = _unshare(_CLONE_NEWNET)
    layers["ipc"] = _unshare(_CLONE_NEWIPC)
    layers["pid"] = _works(_try_pid_namespace)
    if is_root:
        paths = [sys.prefix, sys.base_prefix, options["directory"]]
        if _works(lambda: _open_paths(paths)):
            _open_paths(paths)
        layers["own_uid"] = _works(lambda: _try_uid(options["first_uid"]))
    layers["process_limit"] = layers["own_uid"] or (layers["user"] and not is_root)  # the kernel never limits root's
    return layers


def _unshare(flags: int) -> bool:
    return _libc.unshare(flags) == 0


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _enter_user_namespace() -> bool:
    uid, gid = os.geteuid(), os.getegid()
    if not _unshare(_CLONE_NEWUSER):
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def _open_paths(paths: list[str]) -> bool:
    """Give other users a way to what they need where it lies in a folder closed to them, such as /root.

    In a mount namespace of the zygote, an empty folder covers the closed one, with the paths alone in their place.
    """
    wanted = {os.path.realpath(path) for path in paths}
    closed = {path: ancestor for path in wanted if (ancestor := _closed_ancestor(os.path.dirname(path))) is not None}
    if not closed or not _unshare(_CLONE_NEWNS):
        return not closed
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    opened = {path: os.open(path, os.O_PATH) for path in closed}
    for ancestor in sorted(set(closed.values())):
        if not any(ancestor != other and ancestor.startswith(other + "/") for other in closed.values()):
            _mount("tmpfs", ancestor, "tmpfs", 0, "mode=755,size=1m")
    for path, descriptor in opened.items():
        previous = os.umask(0o022)
        os.makedirs(path, exist_ok=True)
        os.umask(previous)
        _mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC, None)
        os.close(descriptor)
    return True


def _closed_ancestor(path: str) -> str | None:
    """The topmost folder on the way to a path that others may not pass, None when the way is open."""
    parts = path.strip("/").split("/")
    ancestors = ("/" + "/".join(parts[: i + 1]) for i in range(len(parts)))
    return next((a for a in ancestors if not os.stat(a).st_mode & stat.S_IXOTH), None)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*texts, flags, options.encode() if options is not None else None) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")


def _works(attempt: Callable[[], bool]) -> bool:
    """Whether an attempt succeeds, made in a process of its own."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os._exit(0 if attempt() else 1)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _try_pid_namespace() -> bool:
    if not _unshare(_CLONE_NEWPID):
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _try_uid(uid: int) -> bool:
    """Whether another user than root can read the interpreter's libraries."""
    _become(uid)
    return all(os.access(p, os.R_OK | os.X_OK) for p in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)))


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _keep(job: dict[str, Any], descriptors: list[int], layers: dict[str, bool]) -> None:
    """Start the program, wait for it, clean up and report. Returns in the program alone, when it has ended."""
    status = descriptors[3]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if layers["user"]:
        _enter_user_namespace()  # a new one for each program, so that the limit on processes counts only its own
    report_end, report = os.pipe()
    if layers["pid"] and not _unshare(_CLONE_NEWPID):
        os._exit(1)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(report_end)
        if not layers["pid"] or _become_init(report):
            _run_program(job, descriptors, layers)
            return
    for descriptor in (report, *descriptors[:3]):
        os.close(descriptor)
    is_late, code = _await_end(child, status, start + job["timeout"], report_end if layers["pid"] else None)
    elapsed = time.monotonic() - start
    outcome = {"return_code": None if is_late else code, "timed_out": is_late, "execution_time": elapsed}
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(outcome).encode())
    os._exit(0)


def _become_init(report: int) -> bool:
    """Be process 1 of the namespace, which takes all others along when it ends. Returns True in the program."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    program = os.fork()
    if program == 0:
        return True
    while True:
        pid, status = os.wait()
        if pid == program:
            os.write(report, struct.pack("i", status))
            os._exit(0)


def _await_end(child: int, status: int, deadline: float, report: int | None) -> tuple[bool, int | None]:
    """Wait until the program ends, its time is up, or nobody reads its status. Kills whatever it left behind.

    Returns:
        Whether its time was up, and its return code, negative for a signal.
    """
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(status, 0)  # POLLERR comes unasked, when the reader is gone
    events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    is_late = ended not in events
    if is_late:
        os.kill(child, signal.SIGKILL)
    wait_status = os.waitpid(child, 0)[1]
    if report is None:
        _kill_descendants()
        return is_late, os.waitstatus_to_exitcode(wait_status)
    text = os.read(report, 4)
    if len(text) < 4:
        return is_late, None if is_late else -signal.SIGKILL
    return is_late, os.waitstatus_to_exitcode(struct.unpack("i", text)[0])


def _kill_descendants() -> None:
    """Kill all that the program forked; orphans come to the keeper, their subreaper, so nothing escapes."""
    while True:
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        queue.extend(children.get(queue[0], []))
        found.extend(children.get(queue.pop(0), []))
    return found


def _run_program(job: dict[str, Any], descriptors: list[int], layers: dict[str, bool]) -> None:
    """Take on the program's descriptors, identity and limits, and run it. Returns at the end of Python code."""
    os.setsid()
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if layers["own_uid"]:
        _become(job["uid"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _set_limits(job, can_limit_processes=layers["process_limit"])
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(job["directory"])
    os.environ.update(HOME=job["directory"], TMPDIR=job["directory"])
    if job["language"] == "bash":
        os.execv("/bin/bash", ["bash", job["file"]])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _run_python(job["file"], job["directory"])


def _set_limits(job: dict[str, Any], *, can_limit_processes: bool) -> None:
    cpu_s = int(job["timeout"]) + 2
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: _MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if can_limit_processes:
        limits[resource.RLIMIT_NPROC] = _MAX_PROCESSES
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _run_python(file: str, directory: str) -> None:
    """Execute a file as `python file` would; tracebacks begin with the file's own frame."""
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=file, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    sys.argv[:] = [file]
    sys.path.insert(0, directory)
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a text file on descriptor 1
    atexit.register(_end)
    sys.excepthook = _show_exception
    with open(file, "rb") as source:
        text = source.read()
    try:
        exec(compile(text, file, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as request:
        _exit_code[0] = _code_of(request)


def _show_exception(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    _exit_code[0] = 1
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def _code_of(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code & 0xFF
    sys.stderr.write(f"{request.code}\n")
    return 1


def _end() -> None:
    """Leave without tearing the interpreter down, which takes longer than most programs; registered first, run last."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(_exit_code[0])


if __name__ == "__main__":
    main()
