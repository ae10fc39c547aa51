import asyncio
import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from rl.errors import ServiceError
from rl.services.embedded import EmbeddedSandbox
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.server import SandboxServer, serve
from tests.unit.services.conftest import post_json

ROOT = Path(__file__).resolve().parents[4]


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_run_code_answers_in_the_wire_format(post):
    answer = post("print(6 * 7)")
    fusion = {"status", "message", "compile_result", "run_result", "executor_pod_name", "files"}
    assert set(answer) == fusion | {"queue_time"}
    assert 0 <= answer["queue_time"] < 5
    assert (answer["status"], answer["compile_result"], answer["files"]) == ("Success", None, {})
    run = answer["run_result"]
    assert set(run) == {"status", "execution_time", "return_code", "stdout", "stderr"}
    assert (run["status"], run["return_code"], run["stdout"], run["stderr"]) == ("Finished", 0, "42\n", "")
    assert 0 < run["execution_time"] < 5


@pytest.mark.parametrize(
    ("code", "language", "return_code", "stdout"),
    [
        ("echo hi; exit 2", "bash", 2, "hi\n"),
        ("import sys; sys.exit('bye')", "python", 1, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "python", -15, ""),
        ("import os; os.abort()", "python", -6, ""),
        ("kill -9 $$", "bash", -9, ""),
        ("import threading; threading.Thread(target=lambda: print('late')).start()", "python", 0, "late\n"),
        ("import atexit; atexit.register(print, 'bye')", "python", 0, "bye\n"),
        ("if __name__ == '__main__': import sys; print(__file__, sys.argv)", "python", 0, "main.py ['main.py']\n"),
        ("import sys; print('no newline', end='')", "python", 0, "no newline"),
        (
            "import multiprocessing as m\nprint(m.get_context('fork').Pool(2).map(abs, [-1, 2]))",
            "python",
            0,
            "[1, 2]\n",
        ),
    ],
)
def test_run_code_reports_how_a_program_ends(post, code, language, return_code, stdout):
    answer = post(code, language)
    assert (answer["run_result"]["return_code"], answer["run_result"]["stdout"]) == (return_code, stdout)
    assert answer["status"] == ("Success" if return_code == 0 else "Failed")


def test_tracebacks_begin_with_the_program(post):
    stderr = post("def f():\n    raise ValueError('no')\nf()")["run_result"]["stderr"]
    assert stderr == (
        'Traceback (most recent call last):\n  File "main.py", line 3, in <module>\n    f()\n'
        "  File \"main.py\", line 2, in f\n    raise ValueError('no')\nValueError: no\n"
    )


def test_time_out_keeps_the_output_so_far(post):
    start = time.monotonic()
    answer = post("print('so far')\nwhile True: pass", run_timeout="0.5")
    assert time.monotonic() - start < 4
    run = answer["run_result"]
    assert (answer["status"], run["status"]) == ("Failed", "TimeLimitExceeded")
    assert (run["return_code"], run["stdout"]) == (None, "so far\n")


def test_a_program_that_ignores_signals_ends_at_its_deadline(post):
    code = "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    assert post(code, run_timeout=0.3)["run_result"]["status"] == "TimeLimitExceeded"


def test_output_is_read_while_running_and_capped(post):
    run = post("import sys\nsys.stdout.write('x' * 3_000_000)\nsys.stderr.write('e' * 100)")["run_result"]
    assert run["return_code"] == 0
    assert run["stdout"].startswith("x" * 1_048_576 + "\n...(output cut after 1048576 bytes)")
    assert run["stderr"] == "e" * 100


def test_bytes_that_are_not_utf8_are_replaced(post):
    assert post("import os; os.write(1, b'a\\xffb')")["run_result"]["stdout"] == "a�b"


def test_scientific_libraries_are_imported_before_the_fork(post):
    code = "import numpy, sympy, sys\nprint(sympy.sqrt(8), numpy.arange(3).sum(), __name__)"
    post(code, run_timeout=30)  # starts the interpreter with the libraries
    answer = post(code)
    assert answer["run_result"]["stdout"] == "2*sqrt(2) 3 __main__\n"
    assert answer["run_result"]["execution_time"] < 0.5


def test_stdin_files_and_fetch_files_work(post):
    code = "import sub.helper\nprint(input(), open('data.txt').read())\nopen('sub/out.bin', 'wb').write(b'\\x00\\x01')"
    answer = post(
        code,
        stdin="first\nsecond",
        files={"data.txt": encode("content"), "sub/helper.py": encode("print('imported')"), "left_out": None},
        fetch_files=["sub/out.bin", "missing"],
        compile_timeout="3",
        memory_limit_MB="512",
        unknown_field=1,
    )
    assert answer["run_result"]["stdout"] == "imported\nfirst content\n"
    assert answer["files"] == {"sub/out.bin": base64.b64encode(b"\x00\x01").decode()}


def test_fetch_files_does_not_follow_links_out(post, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    code = f"import os\nos.symlink({str(secret)!r}, 'link')\nos.symlink({str(tmp_path)!r}, 'folder')"
    answer = post(code, fetch_files=["link", "folder/secret"])
    assert (answer["status"], answer["files"]) == ("Success", {})


@pytest.mark.parametrize(
    ("language", "code", "compiled", "return_code", "output"),
    [
        ("nodejs", "console.log(6 * 7); process.exit(3)", None, 3, "42\n"),
        ("cpp", '#include <cstdio>\nint main() { int x; scanf("%d", &x); printf("%d", x * 2); }', 0, 0, "42"),
        ("cpp", "int main() { return x; }", 1, None, None),
        ("cpp", "#include <csignal>\nint main() { raise(SIGSEGV); }", 0, -11, ""),
    ],
)
def test_other_languages_run_or_say_what_is_missing(post, language, code, compiled, return_code, output):
    needed = {"nodejs": "node", "cpp": "g++"}[language]
    if shutil.which(needed, path="/usr/local/bin:/usr/bin:/bin") is None:
        assert f"needs {needed}" in post(code, language, status=422)["detail"]
        return
    answer = post(code, language, stdin="21", compile_timeout=30)
    assert (answer["compile_result"] and answer["compile_result"]["return_code"]) == compiled
    run = answer["run_result"] or {"return_code": None, "stdout": None}
    assert (run["return_code"], run["stdout"]) == (return_code, output)
    assert answer["status"] == ("Success" if return_code == 0 else "Failed")


def test_many_programs_at_once_are_all_answered_right(post):
    with ThreadPoolExecutor(16) as pool:
        outputs = pool.map(lambda i: post(f"print({i} ** 2)")["run_result"]["stdout"], range(48))
    assert list(outputs) == [f"{i**2}\n" for i in range(48)]


def test_a_client_that_goes_away_frees_its_worker(sandbox, post):
    body = json.dumps({"code": "import time; time.sleep(30)", "language": "python", "run_timeout": 40}).encode()
    request = urllib.request.Request(sandbox.url, body, {"Content-Type": "application/json"})
    for _ in range(4):  # as many as there are workers
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(request, timeout=0.1)
    assert post("print(1)")["run_result"]["stdout"] == "1\n"
    assert sandbox.health()["in_flight"] == 0


def read_metrics(sandbox) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{sandbox.port}/metrics", timeout=10) as response:
        samples = (line for line in response.read().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (sample.rpartition(" ") for sample in samples)}


def test_health_tells_what_is_there(sandbox, post):
    post("print(1)")
    health = sandbox.health()
    assert (health["status"], health["workers"], health["in_flight"]) == ("ok", 4, 0)
    assert all(isinstance(is_there, bool) for is_there in health["isolation"].values())
    wait_until(lambda: sandbox.health()["preloaded"] is not None)
    assert sandbox.health()["preloaded"] == ["numpy", "sympy", "scipy"]


def test_metrics_count_what_happened(sandbox, post):
    before = read_metrics(sandbox)
    post("print(1)")
    post("exit(1)")
    post("import time; time.sleep(60)", run_timeout=0.1)
    post("print(1)", language="cobol", status=422)
    after = read_metrics(sandbox)
    added = {name: after[name] - before.get(name, 0.0) for name in after}
    assert added['sandbox_requests_total{language="python",status="Success"}'] == 1
    assert added['sandbox_requests_total{language="python",status="Failed"}'] == 2
    assert added['sandbox_requests_total{language="",status="422"}'] == 1
    assert added['sandbox_run_seconds_count{language="python"}'] == 3
    assert added["sandbox_queue_seconds_count"] == 3
    assert added["sandbox_request_seconds_count"] == 4
    assert 0.1 <= added['sandbox_run_seconds_sum{language="python"}'] < 5
    assert 10 << 20 < after["sandbox_memory_bytes"] < 2 << 30
    for name in ("sandbox_running", "sandbox_queue_depth", "sandbox_sessions", "sandbox_workers_restarted_total"):
        assert after[name] == 0


@pytest.fixture
def small_sandbox():
    """One worker, and room for one request to wait."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = f"from rl.services.sandbox.server import serve; serve(port={port}, workers=1, max_queue=1)"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        wait_until(lambda: ask(port, "/health") is not None)
        yield SmallSandbox(process, port)
    finally:
        process.terminate()
        process.wait(40)


class SmallSandbox:
    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}/run_code"

    def post(self, code: str, *, status: int = 200, **fields: object) -> dict:
        body = {"code": code, "language": "python", **fields}
        return post_json(self.url, json.dumps(body).encode(), status)

    def begin(self, code: str, **fields: object) -> http.client.HTTPConnection:
        """Send a program without waiting for it. Closing the connection ends it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {"code": code, "language": "python", "run_timeout": 60, "queue_timeout": 60, **fields}
        connection.request("POST", "/run_code", json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def wait_in_flight(self, number: int) -> None:
        wait_until(lambda: (ask(self.port, "/health") or {}).get("in_flight") == number)


def ask(port: int, path: str) -> dict | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as response:
            return json.load(response)
    except OSError:
        return None


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 60 s"
        time.sleep(0.01)


def test_a_request_is_answered_when_its_patience_in_the_queue_ends(small_sandbox):
    busy = small_sandbox.begin("import time; time.sleep(60)")
    small_sandbox.wait_in_flight(1)
    answer = small_sandbox.post("print(1)", queue_timeout="0.1", status=504)
    assert (answer["status"], answer["run_result"]) == ("SandboxError", None)
    assert answer["message"] == "no worker was free within 0.1 s; the program was not run"
    assert answer["queue_time"] >= 0.1
    busy.close()
    assert small_sandbox.post("print(1)", queue_timeout=60)["run_result"]["stdout"] == "1\n"


def test_a_full_queue_is_said_at_once(small_sandbox):
    busy = []
    for number in (1, 2):
        busy.append(small_sandbox.begin("import time; time.sleep(60)"))
        small_sandbox.wait_in_flight(number)
    answer = small_sandbox.post("print(1)", status=503)
    assert (answer["status"], answer["message"]) == ("SandboxError", "1 programs are already waiting")
    for connection in reversed(busy):
        connection.close()
    small_sandbox.wait_in_flight(0)


async def test_callers_take_turns_by_the_header_that_names_them():
    pool = SandboxPool(1)
    server = TestServer(SandboxServer(pool, max_queue=10).application(), handler_cancellation=True)
    await server.start_server()
    try:
        async with aiohttp.ClientSession() as http:

            async def post(caller: str, code: str) -> float:
                body = {"code": code, "language": "python", "run_timeout": 60, "queue_timeout": 60}
                async with http.post(server.make_url("/run_code"), json=body, headers={"X-Caller": caller}) as answer:
                    return float((await answer.json())["run_result"]["stdout"])

            async def begin(caller: str, code: str) -> asyncio.Task[float]:
                async def in_flight() -> int:
                    async with http.get(server.make_url("/health")) as answer:
                        return (await answer.json())["in_flight"]

                before = await in_flight()
                task = asyncio.create_task(post(caller, code))
                async with asyncio.timeout(30):
                    while await in_flight() == before:
                        await asyncio.sleep(0.005)
                return task

            busy = await begin("a", "import time; time.sleep(60)")
            tasks = [await begin(caller, "import time; print(time.monotonic())") for caller in "aaab"]
            busy.cancel()
            first, second, third, other = await asyncio.gather(*tasks)
    finally:
        await server.close()
        pool.close()
    assert first < other < second < third


def test_sigterm_lets_what_runs_end_and_refuses_what_waits(small_sandbox):
    runs = small_sandbox.begin("import time; time.sleep(2); print('done')")
    small_sandbox.wait_in_flight(1)
    waits = small_sandbox.begin("print(1)")
    small_sandbox.wait_in_flight(2)
    small_sandbox.process.send_signal(signal.SIGTERM)
    refused = waits.getresponse()
    assert (refused.status, "stopping" in json.load(refused)["message"]) == (503, True)
    assert json.load(runs.getresponse())["run_result"]["stdout"] == "done\n"
    assert small_sandbox.process.wait(40) == 0
    assert ask(small_sandbox.port, "/health") is None


def test_serve_says_what_to_do_about_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"cannot listen on 127.0.0.1:{port}.*another --port"):
            serve("127.0.0.1", port)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"workers": 0}, "--workers must be at least 1, got 0"), ({"max_queue": -1}, "--max-queue must be at least 0")],
)
def test_serve_refuses_numbers_out_of_range(options, text):
    with pytest.raises(ServiceError, match=text):
        serve(port=0, **options)


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_the_embedded_sandbox_ends_with_its_parent():
    program = (
        "import time; from rl.services.embedded import EmbeddedSandbox\n"
        "sandbox = EmbeddedSandbox(workers=1); print(sandbox.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    wait_gone(pid)


def test_the_embedded_sandbox_leaves_no_process_and_no_file():
    sandbox = EmbeddedSandbox(workers=1)
    children = Path(f"/proc/{sandbox.pid}/stat").exists()
    post_json(sandbox.url, json.dumps({"code": "open('a', 'w')", "language": "python"}).encode(), 200)
    before = set(Path(tempfile.gettempdir()).glob("turnwise-sandbox-*"))
    sandbox.close()
    sandbox.close()
    assert children
    assert not Path(f"/proc/{sandbox.pid}").exists()
    assert len(before - set(Path(tempfile.gettempdir()).glob("turnwise-sandbox-*"))) >= 1


def test_an_interpreter_that_died_is_replaced(post):
    sandbox = EmbeddedSandbox(workers=1)
    try:
        body = json.dumps({"code": "print(1)", "language": "python"}).encode()
        for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == sandbox.pid:
                os.kill(pid, signal.SIGKILL)
                wait_gone(pid)
        assert post_json(sandbox.url, body, 200)["run_result"]["stdout"] == "1\n"
    finally:
        sandbox.close()
