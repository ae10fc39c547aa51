"""Attacks on a sandbox of an ordinary user, and on one that lacks layers: worker and box are unchanged afterwards."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rl.services.sandbox import landlock
from tests.attacks.conftest import Host, make_precious, open_folder, start_server

PROGRAMS = Path(__file__).parent / "programs"
NAMESPACES = ["user", "mount", "pid", "ipc", "network"]
MODES = {
    "root": ("root", []),
    "root without control groups": ("root", ["cgroup"]),
    "root without namespaces": ("root", NAMESPACES),
    "root without namespaces and Landlock": ("root", [*NAMESPACES, "landlock"]),
    "root without users": ("root", ["own_uid"]),
    "root without seccomp": ("root", ["seccomp"]),
    "ordinary user": ("ordinary", []),
    "ordinary user without seccomp": ("ordinary", ["seccomp"]),
    "ordinary user without mounts": ("ordinary", ["mount"]),
    "ordinary user without Landlock": ("ordinary", ["landlock"]),
    "ordinary user without namespaces": ("ordinary", NAMESPACES),
    "ordinary user without namespaces and Landlock": ("ordinary", [*NAMESPACES, "landlock"]),
}
OF_FILES = ["swaps_its_folder_for_a_link.py", "swaps_its_box_for_a_link.py"]
OF_LEFT_FILES = ["leaves_files_beside_its_folder.py"]
OF_PROCESSES = ["changes_other_processes.py"]
OF_MEMORY = ["memory_in_maps_that_are_gone.py", "memory_in_socket_buffers.py", "memory_bomb_of_children.py"]
OF_MEMORY += ["memory_in_page_tables.js"] * (shutil.which("node") is not None)


@pytest.fixture(scope="module", params=MODES)
def weaker(request: pytest.FixtureRequest) -> Iterator[Host]:
    user, refused = MODES[request.param]
    if user == "root" and os.geteuid() != 0:
        pytest.skip("root alone can try this")
    with start(user, refused) as host:
        yield host


@contextlib.contextmanager
def start(user: str, refused: list[str]) -> Iterator[Host]:
    """A sandbox of this user, on a machine that refuses these layers."""
    with start_server(user, refused, preload=[]) as server, open_folder() as folder:
        host = Host(server, folder, make_precious(folder), server.process)
        host.given = {"precious_folder": str(host.precious), "server_pid": server.pid}
        yield host


def layers_of(host: Host) -> dict[str, bool]:
    layers: dict[str, bool] = host.request("GET", "/health")[1]["isolation"]
    return layers


@pytest.mark.parametrize("name", OF_FILES)
def test_an_attack_on_files_is_contained(weaker: Host, name: str):
    run_and_look(weaker, name)


@pytest.mark.parametrize("name", OF_LEFT_FILES)
def test_files_left_are_removed(weaker: Host, name: str):
    layers = layers_of(weaker)
    if not layers["mount"] and not layers["landlock"]:
        pytest.skip("nothing keeps programs from writing to the machine")
    run_and_look(weaker, name)


def test_no_message_is_left(weaker: Host):
    layers = layers_of(weaker)
    make = """
import ctypes
libc = ctypes.CDLL(None)
key = 0x7477
print([libc.shmget(key, 4096, 0o1666), libc.msgget(key, 0o1666), libc.semget(key, 9, 0o1666)])
"""
    found = [weaker.post(make)[1]["run_result"]["stdout"] for _ in range(6)]
    found += [weaker.post(make.replace("0o1666", "0o666"))[1]["run_result"]["stdout"] for _ in range(3)]
    assert layers["ipc"] or layers["seccomp"]
    assert found[6:] == ["[-1, -1, -1]\n"] * 3
    assert layers["seccomp"] or all(int(number) >= 0 for text in found[:6] for number in text.strip("[]\n").split(","))
    run = weaker.post("import ctypes; print(ctypes.CDLL(None).mq_open(b'/turnwise_attack', 0o102, 0o666, None))")[1]
    assert run["run_result"]["stdout"] == "-1\n"


@pytest.mark.parametrize("name", OF_PROCESSES)
def test_an_attack_on_processes_is_contained(weaker: Host, name: str):
    layers = layers_of(weaker)
    if not layers["seccomp"]:
        pytest.skip("nothing keeps programs from the calls; what they change is replaced")
    if not layers["pid"] and (not layers["landlock"] or landlock.version() < 6):
        pytest.skip("nothing keeps programs from sending signals")
    run_and_look(weaker, name)
    assert weaker.request("GET", "/health")[1]["workers_replaced"] == 0


@pytest.mark.parametrize("name", OF_MEMORY)
def test_an_attack_on_memory_is_contained(weaker: Host, name: str):
    run_and_look(weaker, name)


def test_a_worker_that_a_program_has_changed_is_replaced_and_told():
    with start("ordinary", [*NAMESPACES, "seccomp"]) as host:
        change = "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_{}, (3, 3)); print('done')"
        assert host.post(change.format("FSIZE"))[1]["run_result"]["stdout"] == "done\n"
        assert host.post(change.format("NOFILE"))[1]["status"] in ("Success", "SandboxError")  # that worker needs more
        deadline = time.monotonic() + 20
        while host.request("GET", "/health")[1]["workers_replaced"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(4):
            assert host.post("open('new', 'w').write('12345'); print('right')")[1]["run_result"]["stdout"] == "right\n"
        assert host.request("GET", "/health")[1]["workers_replaced"] == 2


def run_and_look(host: Host, name: str) -> None:
    host.run_program(PROGRAMS / name)
    for i in range(3):  # any worker may have run it
        answer = host.post(
            f"import os; open('new', 'w').write('{i}'); print(sorted(os.listdir()), open('new').read())"
        )[1]
        assert answer["run_result"]["stdout"] == f"['main.py', 'new'] {i}\n", answer
    host.check_precious()
    if os.geteuid() == 0:
        deadline = time.monotonic() + 20
        while seen := what_is_left(host):
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)


def what_is_left(host: Host) -> list[str]:
    """Files in and next to the boxes of programs that wait for their code, and errors of the search."""
    found, boxes = [], []
    for process in psutil.Process(host.sandbox.pid).children(recursive=True):
        try:
            if Path(process.cwd()).name != "work":
                continue
            work = Path(f"/proc/{process.pid}/cwd")
            box = work / ".."
            boxes.append(os.stat(box).st_ino)
            found += [f"{name} in the box" for name in os.listdir(box) if name not in ("work", "tmp", "shm")]
            found += [f"{name}/{entry}" for name in ("work", "tmp", "shm") for entry in os.listdir(box / name)]
            found += [f"attribute {name}" for name in os.listxattr(work)]
            above = os.listdir(box / "..")
            num_strange = len([name for name in above if name != "run" and not (box / ".." / name / "work").is_dir()])
            found += ["something beside the boxes"] * num_strange
        except (psutil.Error, OSError) as error:
            found.append(str(error))
    return found if len(boxes) == 2 else [*found, f"{len(boxes)} boxes"]
