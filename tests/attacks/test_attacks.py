"""Each file of `programs/` attacks the sandbox. Every attack is contained, and the sandbox goes on as if nothing was.

A program prints `tried` at its end, and `ESCAPED` where it got further than it should. A first line `ends:` says how
it ends otherwise: at its `time limit`, `killed` for its memory, or `any`. A JSON file is a list of requests, with what
must be answered.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rl.services.sandbox.isolation import missing_layers
from tests.attacks.conftest import NUM_PROCESSES, Host

PROGRAMS = Path(__file__).parent / "programs"
ATTACKS = sorted(path.name for path in PROGRAMS.iterdir() if path.is_file() and path.name != "attack.py")
CHECK = """
import os
left = [name for folder in ('.', '/tmp', '/dev/shm', '/var/tmp') for name in os.listdir(folder)]
for folder, known in (('..', {'work', 'tmp', 'shm'}), ('../..', {'run'})):
    try: left += set(os.listdir(folder)) - known
    except OSError: pass
try: left += os.listxattr('.')
except OSError: pass
print(left, [pid for pid in os.listdir('/proc') if pid.isdigit() and int(pid) != os.getpid()])
"""


@pytest.fixture(autouse=True)
def _isolated(host: Host) -> None:
    missing = missing_layers(host.sandbox.health()["isolation"], allow_network=False)
    if missing:
        pytest.skip(f"this machine does not allow {', '.join(missing)}, and the attack would be real")


def test_there_are_many_attacks():
    assert len(ATTACKS) >= 60


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained(host: Host, name: str):
    _wait_until_at_rest(host)
    namespaces = host.namespaces()
    with ThreadPoolExecutor(1) as pool:
        if name.endswith(".json"):
            attack = pool.submit(_run_requests, host, name)
        else:
            attack = pool.submit(host.run_program, PROGRAMS / name)
        assert _neighbour(host) == "499999500000\n"
        attack.result(60)
    for _ in range(3):  # any worker may have run it
        status, answer = host.post(CHECK)
        assert (status, answer["run_result"]["stdout"]) == (200, "['main.py'] []\n")
    _wait_until_at_rest(host)
    assert host.namespaces() == namespaces
    assert host.marked_files() == []
    host.check_precious()
    assert host.victim.poll() is None
    assert _visitors(host) == []
    assert host.sandbox.health()["in_flight"] == 0


def _neighbour(host: Host) -> str:
    _, answer = host.post("print(sum(range(1_000_000)))", run_timeout=10)
    return str(answer["run_result"]["stdout"])


def _run_requests(host: Host, name: str) -> None:
    for request in json.loads((PROGRAMS / name).read_text()):
        if session := request.pop("delete", None):
            assert host.request("DELETE", f"/sessions/{session}")[0] in (200, 404)
            continue
        expected: dict[str, Any] = request.pop("expect", {})
        wanted_status, stdout = request.pop("http", 200), request.pop("stdout", None)
        num_files = request.pop("files_fetched", None)
        status, answer = host.post(**request)
        assert status == wanted_status, answer
        assert {key: answer[key] for key in expected} == expected
        assert num_files is None or len(answer["files"]) == num_files
        assert stdout is None or answer["run_result"]["stdout"] == stdout, answer


def _visitors(host: Host) -> list[str]:
    """The host's sockets that have received something."""
    found = []
    for bait in host.sockets:
        try:
            found.append(str(bait.accept() if bait.type == bait.type.SOCK_STREAM else bait.recv(100)))
        except BlockingIOError:
            continue
    return found


def _wait_until_at_rest(host: Host) -> None:
    deadline = time.monotonic() + 10
    while len(host.processes()) != NUM_PROCESSES:
        assert time.monotonic() < deadline, host.processes()
        time.sleep(0.05)
