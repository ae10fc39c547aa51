"""Common code of the attacks, placed next to each of them in the sandbox. The test provides `given`."""

import ctypes
import json
import os
import platform
import subprocess
import sys

given = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, action):
    """An action that should fail; `ESCAPED` in the output fails the test."""
    try:
        result = action()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"{name}: {type(error).__name__}")
    else:
        print(f"ESCAPED: {name} {result!r:.200}")


def call(name, *arguments):
    """A function of the C library that sets errno."""
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def syscall(number, *arguments):
    """A system call by its number on x86_64."""
    if platform.machine() != "x86_64":
        raise OSError("the numbers are those of x86_64")
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read(path):
    with open(path, "rb") as file:
        return file.read(100)


def write(path, content=b"x"):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
