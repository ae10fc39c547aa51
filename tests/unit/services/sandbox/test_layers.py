"""With every subset of the layers refused, a sandbox starts, and a program leaves nothing for the next one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
REFUSED = ("landlock", "seccomp", "mount", "pid", "ipc", "network")
PROGRAM = """
import asyncio, json, logging, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from tests.unit.services.sandbox.ordinary_user import become_nobody
from tests.unit.services.sandbox.refusals import refuse

user, subsets = sys.argv[1], json.loads(sys.argv[2])
if user == "root of a namespace":
    from rl.services.sandbox import kernel
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        open(f"/proc/self/{name}", "w").write(text)
elif user == "ordinary" and os.geteuid() == 0:
    become_nobody()
from rl.services.sandbox.pool import SandboxPool
from tests.unit.services.conftest import statuses
from rl.services.sandbox.request import parse_request

FILL = '''
import os, time
for folder in ('.', os.environ['TMPDIR'], os.environ['TMPDIR'] + '/../shm'):
    os.makedirs(folder + '/left/deep'); open(folder + '/left/deep/file', 'w').close()
if os.fork() == 0: os.setsid(); time.sleep(60)
time.sleep(0.06)
print('filled')
'''
LOOK = '''
import os
left = [name for folder in ('.', os.environ['TMPDIR'], os.environ['TMPDIR'] + '/../shm') for name in os.listdir(folder)]
print(left, os.path.realpath('.') == os.path.realpath(os.environ['HOME']))
'''

SPIN = '''
import subprocess, threading
n = 0
def spin():
    global n
    while True: n += 1
threading.Thread(target=spin, daemon=True).start()
child = subprocess.Popen(['sh', '-c', 'while :; do :; done'])
'''

async def start_and_run():
    pool = SandboxPool(2, preload=())
    async def run(code):
        done = await pool.run(parse_request({"code": code, "language": "python", "run_timeout": 20}))
        return done.stdout or done.stderr
    found = {"layers": pool.layers, "filled": [await run(FILL) for _ in range(2)], "seen": []}
    found["seen"] = await asyncio.gather(*[run(LOOK) for _ in range(4)])
    session = await pool.open_session(memory_limit_mb=256, files={"given": b"7"})
    found["session"] = (await session.run("print(open('given').read())", timeout=20)).stdout
    await session.run(SPIN, timeout=20)
    deadline = time.monotonic() + 20
    while not found.get("is_still") and time.monotonic() < deadline:
        found["is_still"] = statuses(os.getpid(), recursive=True).count("stopped") == 2
        await asyncio.sleep(0.005)
    found["goes_on"] = (await session.run("m = n\\nwhile n == m: pass\\nprint('on')", timeout=20)).stdout
    await session.close()
    found["replaced"], folder = pool.num_restarts, pool._folder.path
    pool.close()
    found["left"] = folder.exists()
    return found

def try_one(names):
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        refuse(names)
        found = asyncio.run(start_and_run())
        os.write(write_end, json.dumps(found).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        text = pipe.read()
    return json.loads(text) if text else None

logging.disable()
with ThreadPoolExecutor(4) as pool:
    print(json.dumps(list(pool.map(try_one, subsets))))
"""


def start_each(user: str, subsets: list[list[str]]) -> None:
    command = [sys.executable, "-c", PROGRAM, user, json.dumps(subsets)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for names, found in zip(subsets, json.loads(done.stdout), strict=True):
        assert found is not None, (names, done.stderr)
        layers = found.pop("layers")
        held = {name for name in names if layers[name] and name != "network"}  # seccomp can replace it
        assert held == set(), names
        assert found == {
            "filled": ["filled\n"] * 2,
            "seen": ["['main.py'] True\n"] * 4,
            "session": "7\n",
            "is_still": True,
            "goes_on": "on\n",
            "replaced": 0,
            "left": False,
        }, names


def subsets_of(names: tuple[str, ...]) -> list[list[str]]:
    return [[name for i, name in enumerate(names) if number >> i & 1] for number in range(1 << len(names))]


@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_every_subset_of_layers_is_enough_to_run_programs(user):
    start_each(user, subsets_of(REFUSED))


def test_root_without_users_or_control_groups_runs_programs():
    alike = [["own_uid"], ["own_uid", "mount"], ["own_uid", "mount", "pid"], ["cgroup"], ["cgroup", "pid", "mount"]]
    start_each("root", [*alike, ["own_uid", "landlock", "seccomp", "mount", "pid", "ipc", "network"]])


def test_root_of_a_user_namespace_runs_programs():
    start_each("root of a namespace", [[], ["landlock"], ["seccomp"], ["mount"], ["pid"], ["mount", "pid", "ipc"]])
