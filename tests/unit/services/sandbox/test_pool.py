import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from rl.errors import ServiceError
from rl.services.json_body import RequestError
from rl.services.sandbox.job import parse_files
from rl.services.sandbox.outcome import Capture
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import parse_request
from rl.services.sandbox.zygote_process import Zygote
from tests.unit.services.conftest import statuses


@pytest.fixture
async def pool():
    pool = SandboxPool(2, preload=())
    yield pool
    pool.close()


def request(code, language="python", **fields):
    return parse_request({"code": code, "language": language, "run_timeout": 10, **fields})


async def test_session_keeps_names_between_calls_and_separates_their_output(pool):
    session = await pool.open_session(memory_limit_mb=256, files={"given.txt": b"7"})
    first = await session.run("x = int(open('given.txt').read())\nprint(input())", stdin=b"one\ntwo\n", timeout=5)
    second = await session.run("print(x * 6)\nimport sys\nprint(sys.stdin.read(), file=sys.stderr)", timeout=5)
    assert (first.stdout, first.return_code) == ("one\n", 0)
    assert (second.stdout, second.stderr, second.return_code) == ("42\n", "\n", 0)
    await session.run("open('made', 'wb').write(b'\\xff')", timeout=5)
    assert await session.fetch(("made", "missing")) == {"made": b"\xff"}
    await session.close()
    await session.close()
    assert not session.is_alive
    with pytest.raises(ServiceError, match="the session has ended"):
        await session.run("1", timeout=1)


async def test_session_outlives_errors_and_exit(pool):
    session = await pool.open_session(memory_limit_mb=256)
    await session.run("x = 1", timeout=5)
    failed = await session.run("def f():\n    1 / 0\nf()", timeout=5)
    assert (failed.return_code, failed.stderr) == (
        1,
        'Traceback (most recent call last):\n  File "<cell 2>", line 3, in <module>\n    f()\n'
        '  File "<cell 2>", line 2, in f\n    1 / 0\nZeroDivisionError: division by zero\n',
    )
    assert (await session.run("exit(3)", timeout=5)).return_code == 3
    assert (await session.run("x = (", timeout=5)).stderr.endswith("SyntaxError: '(' was never closed\n")
    assert (await session.run("print(x)", timeout=5)).stdout == "1\n"
    await session.close()


async def test_session_is_killed_at_the_time_limit_and_says_so(pool):
    session = await pool.open_session(memory_limit_mb=256)
    outcome = await session.run("print('so far', flush=True)\nwhile True: pass", timeout=0.3)
    assert (outcome.timed_out, outcome.return_code, outcome.stdout) == (True, None, "so far\n")
    assert not session.is_alive


async def test_session_that_dies_tells_its_signal(pool):
    session = await pool.open_session(memory_limit_mb=256)
    outcome = await session.run("import os; os.kill(os.getpid(), 11)", timeout=5)
    assert (outcome.timed_out, outcome.return_code) == (False, -signal.SIGSEGV)
    assert not session.is_alive


async def test_session_is_killed_for_the_memory_of_all_its_processes(pool):
    session = await pool.open_session(memory_limit_mb=96)
    code = "import os, time\nfor _ in range(4):\n  if os.fork() == 0: x = b'1' * (40 << 20); break\ntime.sleep(50)"
    outcome = await session.run(code, timeout=20)
    assert (outcome.timed_out, outcome.return_code) == (False, -signal.SIGKILL)
    assert "used more memory than allowed" in outcome.stderr
    assert not session.is_alive


async def test_session_does_not_wait_for_a_background_process_that_holds_the_output(pool):
    session = await pool.open_session(memory_limit_mb=256)
    outcome = await session.run("import subprocess; p = subprocess.Popen(['sleep', '50']); print('on')", timeout=10)
    assert (outcome.stdout, outcome.execution_time < 8) == ("on\n", True)
    await session.close()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
async def test_cpp_is_compiled_and_run(pool):
    good = await pool.run(
        request(
            '#include <cstdio>\nint main() { char s[9]; scanf("%8s", s); puts(s); return 3; }', "cpp", stdin="hello"
        )
    )
    assert good.compile is not None
    assert (good.compile.return_code, good.return_code, good.stdout) == (0, 3, "hello\n")
    bad = await pool.run(request("int main() { return x; }", "cpp"))
    assert bad.compile is not None
    assert (bad.compile.return_code, bad.return_code) == (1, None)
    assert "main.cpp:1:21: error:" in bad.compile.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
async def test_nodejs_runs(pool):
    assert (await pool.run(request("console.log(6 * 7)", "nodejs"))).stdout == "42\n"


async def test_a_language_that_is_not_installed_is_told(pool, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RequestError, match=r"cpp needs g\+\+, which the sandbox's machine lacks"):
        await pool.run(request("", "cpp"))


async def test_a_worker_that_dies_is_told_and_replaced(pool):
    async def kill_worker():
        while True:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.cmdline()[:1] == ["sleep"]:
                        process.parent().parent().kill()  # the worker of the shell that waits
                        return
            await asyncio.sleep(0.02)

    killer = asyncio.create_task(kill_worker())
    with pytest.raises(ServiceError, match="the worker of a program died"):
        await pool.run(request("sleep 50; true", "bash"))
    await killer
    async with asyncio.timeout(20):
        while pool.num_restarts != 1:
            await asyncio.sleep(0.02)
    done = await asyncio.gather(*(pool.run(request(f"print({i})")) for i in range(4)))
    assert [outcome.stdout for outcome in done] == ["0\n", "1\n", "2\n", "3\n"]


async def test_modules_named_by_the_code_are_imported_ahead():
    pool = SandboxPool(1, preload=("colorsys", "no_such_module"))
    try:
        assert pool.preloaded is None
        show = "import sys; print('colorsys' in sys.modules)"
        assert (await pool.run(request(show))).stdout == "True\n"
        assert pool.preloaded == ("colorsys",)
        assert (await pool.run(request("import sys; print('color' + 'sys' in sys.modules)"))).stdout == "False\n"
    finally:
        pool.close()


async def test_a_network_that_is_allowed_is_reached():
    pool = SandboxPool(1, preload=(), allow_network=True)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        code = f"import socket; print(socket.create_connection(('127.0.0.1', {port}), 5).recv(1))"
        assert (await pool.run(request(code))).stdout == "b''\n"
    finally:
        server.close()
        pool.close()


async def test_capture_keeps_the_first_bytes_and_marks_the_cut():
    with Capture(4) as capture:
        os.write(capture.write_end, b"ab\xffcdef")
        capture.close_write_end()
        await capture.done
        assert capture.text() == "ab\ufffdc\n...(output cut after 4 bytes)"


def test_parse_files_refuses_what_is_cut():
    assert parse_files(b'{"a": 1, "files": [["f", 2], ["g", 1]]}\nxyz') == ({"a": 1}, {"f": b"xy", "g": b"z"})
    with pytest.raises(ValueError, match="3 bytes were announced and 2 came"):
        parse_files(b'{"files": [["f", 3]]}\nxy')


def test_the_zygote_needs_the_standard_library_alone():
    program = "import sys, rl.services.sandbox.zygote; print([m for m in sys.modules if m.startswith('rl.')])"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    names = eval(done.stdout)
    assert "rl.services.sandbox.worker" in names
    assert "rl.errors" not in names


def num_workers(pool: SandboxPool) -> int:
    return len(statuses(pool._zygotes[()]._process.pid, recursive=False))


async def test_workers_that_waiting_programs_needed_are_stopped_and_not_replaced(monkeypatch):
    monkeypatch.setattr("rl.services.sandbox.pool._STOP_IDLE_AFTER_S", 0.0)
    pool = SandboxPool(1, preload=())
    try:
        outcomes = await asyncio.gather(
            *(pool.run(request("import time; time.sleep(0.3); print(1)")) for _ in range(6))
        )
        assert [outcome.stdout for outcome in outcomes] == ["1\n"] * 6
        async with asyncio.timeout(30):
            while num_workers(pool) != 1:
                await asyncio.sleep(0.01)
        assert (await pool.run(request("print(2)"))).stdout == "2\n"
        assert (num_workers(pool), pool.num_restarts) == (1, 0)
    finally:
        pool.close()


async def test_a_program_that_waits_says_so_and_when_it_goes_on(pool):
    told: list[bool] = []
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    code = f"import time\ntime.sleep(0.6)\n{busy}"
    assert (await pool.run(request(code), told.append)).return_code == 0
    assert told == [True, False]
    told.clear()
    await pool.run(request(busy), told.append)
    threads = (
        f"import threading\nthread = threading.Thread(target=lambda: exec({busy!r}))\nthread.start(); thread.join()"
    )
    await pool.run(request(threads), told.append)
    assert told == []


def test_num_replaced_leaves_the_report_of_a_zygote_that_starts(tmp_path):
    zygote = Zygote(tmp_path, allow_network=False, preload=(), is_wrapped=False)
    try:
        assert select.select([zygote._control], [], [], 60)[0]
        assert zygote.num_replaced() == 0
        assert zygote.wait()["rlimits"] is True
    finally:
        zygote.close()
