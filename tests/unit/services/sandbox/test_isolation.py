"""The layers reached as root, as an ordinary user, and on a machine that forbids namespaces."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rl.errors import ServiceError
from rl.services.sandbox import isolation, landlock, zygote_process
from rl.services.sandbox import pool as sandbox_pool
from rl.services.sandbox.pool import SandboxPool

ROOT = Path(__file__).resolve().parents[4]
ALL = {
    *("bubblewrap", "user", "mount", "pid", "ipc", "network", "own_uid", "process_limit"),
    *("rlimits", "no_new_privileges", "seccomp", "landlock"),
}
PROGRAM = """
import asyncio, json, os, socket
from rl.services.sandbox import box
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import parse_request

REACH = '''
import os, socket, sys
def reach(name, action):
    try: print(name, 'reached', action())
    except OSError: print(name, 'refused')
pid, port, path = sys.stdin.read().split()
reach('write', lambda: open('/usr/turnwise_attack', 'w'))
reach('host', lambda: open(path).read())
reach('environment', lambda: open(f'/proc/{pid}/environ').read())
reach('kill', lambda: os.kill(int(pid), 0))
reach('network', lambda: socket.create_connection(('127.0.0.1', int(port)), 1))
'''

async def main():
    listener = socket.create_server(("127.0.0.1", 0))
    pool = SandboxPool(2, preload=())
    async def run(code, **fields):
        body = {"code": code, "language": "python", "run_timeout": 5, **fields}
        return (await pool.run(parse_request(body))).stdout
    found = {"layers": pool.layers, "uid": os.getuid()}
    found["hello"] = await run("print(1)")
    found["bash"] = await run("echo x > $TMPDIR/a && cat < $TMPDIR/a", language="bash")
    found["next"] = await run("import os; print(os.listdir(), os.listdir(os.environ['TMPDIR']))")
    told = f"{os.getpid()} {listener.getsockname()[1]} {box.__file__}"
    found["reached"] = await run(REACH, stdin=told)
    daemon = "import os, time\\nif os.fork() == 0: os.setsid(); time.sleep(77)\\nelse: print('left')"
    found["daemon"] = await run(daemon)
    session = await pool.open_session(memory_limit_mb=256)
    await session.run("x = 5", timeout=5)
    found["session"] = (await session.run("print(x)", timeout=5)).stdout
    await session.close()
    root = pool._folder.path
    pool.close()
    found["files left"] = root.exists()
    print(json.dumps(found))

asyncio.run(main())
"""


def run_as_ordinary_user(namespaces: str, before: str = "") -> dict[str, bool]:
    command = [sys.executable, "-m", "tests.unit.services.sandbox.ordinary_user", before + PROGRAM, namespaces]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] != 0
    assert (found["hello"], found["bash"], found["next"]) == ("1\n", "x\n", "['main.py'] []\n")
    assert found["reached"].split("\n")[:-1] == [
        f"{n} refused" for n in ("write", "host", "environment", "kill", "network")
    ]
    assert (found["daemon"], found["session"], found["files left"]) == ("left\n", "5\n", False)
    layers: dict[str, bool] = found["layers"]
    return layers


def test_an_ordinary_user_gets_all_layers_by_a_user_namespace():
    layers = run_as_ordinary_user("allow")
    if not layers["user"]:
        pytest.skip("this machine forbids user namespaces")
    assert isolation.missing_layers(layers, allow_network=False) == []


def test_without_namespaces_the_rest_still_holds():
    layers = run_as_ordinary_user("forbid")
    assert {name for name in ("user", "mount", "pid", "ipc") if layers[name]} == set()
    assert {name for name in ("rlimits", "no_new_privileges", "seccomp", "network") if not layers[name]} == set()
    assert layers["landlock"] == (landlock.version() > 0)


WRAPPED = """
from rl.services.sandbox import pool, zygote_process
pool.missing_layers = lambda layers, **_: [] if layers["bubblewrap"] else ["pid"]
command = zygote_process._bubblewrap
def without_more(directory, **options):
    return ["bwrap", "--unshare-user", "--disable-userns", *command(directory, **options)[1:]]
"""


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("has_more", [True, False])
def test_bubblewrap_makes_the_namespaces_that_are_refused_otherwise(has_more):
    layers = run_as_ordinary_user("allow", WRAPPED + "zygote_process._bubblewrap = without_more\n" * (not has_more))
    assert layers["bubblewrap"]
    assert layers["user"] is has_more
    expected = [] if has_more else ["process_limit"]
    assert isolation.missing_layers(layers, allow_network=False) == expected


@pytest.mark.parametrize("has_bubblewrap", [True, False])
def test_pool_refuses_to_start_where_its_first_program_fails(monkeypatch, tmp_path, has_bubblewrap):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    patch = "from rl.services.sandbox import program; program.run_python = lambda *_: 1 / 0"
    monkeypatch.setattr(
        zygote_process, "_PROGRAM", zygote_process._PROGRAM.replace("from rl.services", f"{patch}; from rl.services")
    )
    if not has_bubblewrap:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=r"its first program failed: exit code 1, .*ZeroDivisionError") as failure:
        SandboxPool(1, preload=())
    is_told = "inside bubblewrap, " in str(failure.value)
    assert is_told is (shutil.which("bwrap") is not None)
    assert list(tmp_path.iterdir()) == []


async def test_missing_isolation_is_refused_when_it_is_required(monkeypatch):
    monkeypatch.setattr(sandbox_pool, "missing_layers", lambda *_, **__: ["pid", "mount or landlock"])
    with pytest.raises(ServiceError, match="isolation is required, but this machine does not allow pid, mount or land"):
        SandboxPool(1, preload=(), require_isolation=True)


def test_missing_layers_names_what_one_of_several_could_give():
    layers = dict.fromkeys(ALL, True)
    assert isolation.missing_layers(layers, allow_network=False) == []
    assert isolation.missing_layers({**layers, "landlock": False}, allow_network=False) == []
    less = {**layers, "landlock": False, "mount": False, "network": False, "seccomp": False}
    less["bubblewrap"] = False
    assert isolation.missing_layers(less, allow_network=True) == ["seccomp", "mount or landlock"]
    assert isolation.missing_layers(less, allow_network=False) == ["seccomp", "mount or landlock", "network"]
    wrapped = dict.fromkeys(ALL, False) | {"bubblewrap": True}
    expected = ["rlimits", "process_limit", "no_new_privileges", "seccomp"]
    assert isolation.missing_layers(wrapped, allow_network=False) == expected
