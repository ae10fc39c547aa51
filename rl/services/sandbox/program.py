"""Executes a program's code in its own process, at once or cell by cell. Standard library only."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import linecache
import os
import signal
import socket
import sys
import traceback
import types
from typing import NoReturn

from rl.services.sandbox.job import receive, write_files
from rl.services.untrusted_files import open_folder, read_files

LARGEST_MESSAGE = 1 << 16
_LARGEST_FETCH_BYTES = 64 << 20


def take_streams(descriptors: list[int]) -> None:
    """Move descriptors to 0, 1, 2."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)


def run_python(file: str, directory: str) -> NoReturn:
    """Execute a file as `python file` would. Tracebacks begin with the file's own frame."""
    module = _new_main(file, directory)
    code = 0
    try:
        with open(file, "rb") as source:
            text = source.read()
        exec(compile(text, file, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as request:
        code = _exit_code(request)
    except BaseException as error:  # the program may raise anything
        code = 1
        _show(error)
    _end(code)


def serve_cells(cells: socket.socket, directory: str) -> None:
    """Execute one piece of code after the other in one namespace, until the server closes the socket.

    A message is JSON with descriptors. `{"run": true}` with code, stdin, stdout and stderr is answered by
    `{"number": number of the call, from 1, "return_code": n}`. `{"fetch": [paths]}` with a pipe is answered in the
    pipe (`write_files`).

    Args:
        cells: A socket from the server that preserves message boundaries.
        directory: The session's folder.
    """
    module = _new_main("session.py", directory)
    own_pid, number = os.getpid(), 0
    while True:
        message, descriptors = receive(cells, LARGEST_MESSAGE)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "fetch" in request:
            with open(descriptors[0], "wb") as pipe, contextlib.suppress(OSError):
                write_files(pipe, {}, _fetch(directory, request["fetch"]))
            continue
        number += 1
        with open(descriptors[0], "rb") as source:
            text = source.read().decode("utf-8", "replace")
        take_streams(descriptors[1:])
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # a new buffer: it holds nothing of the call before
        code = _execute(text, f"<cell {number}>", module)
        if os.getpid() != own_pid:  # a child that the code forked and did not end
            os._exit(code)
        _flush()
        nothing = os.open("/dev/null", os.O_RDWR)
        take_streams([os.dup(nothing), os.dup(nothing), nothing])
        cells.send(json.dumps({"number": number, "return_code": code}).encode())


def _fetch(directory: str, paths: list[str]) -> dict[str, bytes]:
    folder = open_folder(directory)
    try:
        return read_files(folder, paths, _LARGEST_FETCH_BYTES)
    finally:
        os.close(folder)


def _new_main(file: str, directory: str) -> types.ModuleType:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=file, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    sys.argv[:] = [file]
    sys.path.insert(0, directory)
    return module


def _execute(text: str, name: str, module: types.ModuleType) -> int:
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as request:
        return _exit_code(request)
    except BaseException as error:  # the code may raise anything, and the session continues
        _show(error)
        return 1
    return 0


def _show(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.excepthook is not sys.__excepthook__:
            with contextlib.suppress(BaseException):  # the program's own hook may raise anything
                sys.excepthook(type(error), error, trace)
                return
        traceback.print_exception(type(error), error, trace)


def _exit_code(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code & 0xFF
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{request.code}\n")
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]  # the code may have closed or replaced it


def _end(code: int) -> NoReturn:
    """End as the interpreter does, but without the teardown of modules, which may take longer than the program."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()  # waits for threads
        atexit._run_exitfuncs()
    except BaseException as error:  # raised by a thread or an exit function
        code = code or 1
        if not isinstance(error, SystemExit):
            _show(error)
    _flush()
    os._exit(code)
