import base64
import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.unit.services.conftest import statuses


class Client:
    """Sends programs of one session."""

    def __init__(self, sandbox, post) -> None:
        self.id = uuid.uuid4().hex
        self._sandbox, self._post = sandbox, post

    def run(self, code: str, **fields: object) -> dict:
        return self._post(code, session_id=self.id, **fields)

    def begin(self, code: str) -> http.client.HTTPConnection:
        """Send a program without waiting for it. Closing the connection ends it."""
        connection = http.client.HTTPConnection("127.0.0.1", self._sandbox.port, timeout=60)
        body = {"code": code, "language": "python", "run_timeout": 60, "session_id": self.id}
        connection.request("POST", "/run_code", json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def output(self, code: str, **fields: object) -> str:
        return self.run(code, **fields)["run_result"]["stdout"]

    def delete(self) -> int:
        url = self._sandbox.url.replace("/run_code", f"/sessions/{self.id}")
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def open_session(sandbox, post):
    clients: list[Client] = []

    def make() -> Client:
        clients.append(Client(sandbox, post))
        return clients[-1]

    yield make
    for client in clients:
        client.delete()


def wait_for_sessions(sandbox, number: int) -> None:
    deadline = time.monotonic() + 30
    while sandbox.health()["sessions"] != number:
        assert time.monotonic() < deadline, sandbox.health()
        time.sleep(0.01)


def wait_in_flight(sandbox, number: int) -> None:
    deadline = time.monotonic() + 30
    while sandbox.health()["in_flight"] != number:
        assert time.monotonic() < deadline, sandbox.health()
        time.sleep(0.01)


def test_a_session_keeps_what_its_programs_define(open_session):
    client = open_session()
    first = client.run("import math\nx = 6\ndef f(y): return math.sqrt(y)")
    second = client.run("print(x * 7, f(9))")
    assert (second["run_result"]["stdout"], second["message"]) == ("42 3.0\n", "")
    assert [answer["session"]["num_programs"] for answer in (first, second)] == [1, 2]
    assert second["session"]["id"] == client.id


def test_sessions_and_plain_programs_do_not_see_each_other(open_session, post):
    one, other = open_session(), open_session()
    one.run("secret = 1; open('secret', 'w').write('1')")
    for run in (other.output, lambda code: post(code)["run_result"]["stdout"]):
        assert run("import os; print('secret' in globals(), os.path.exists('secret'))") == "False False\n"
    assert one.output("import os; print(secret, os.path.exists('secret'))") == "1 True\n"


def test_an_exception_or_an_exit_ends_the_program_and_not_the_session(open_session):
    client = open_session()
    client.run("x = 1")
    raised = client.run("x = 2\n1 / 0")
    assert raised["run_result"]["return_code"] == 1
    assert raised["run_result"]["stderr"].endswith("ZeroDivisionError: division by zero\n")
    ended = client.run("x = 3\nimport sys\nsys.exit(4)")
    assert (ended["status"], ended["run_result"]["return_code"], ended["message"]) == ("Failed", 4, "")
    assert client.output("print(x)") == "3\n"


def test_each_program_of_a_session_has_its_own_stdin_and_output(open_session):
    client = open_session()
    assert client.output("print(input())", stdin="one\n") == "one\n"
    assert client.output("print(input())", stdin="two\n") == "two\n"
    late = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()"
    client.run(late)
    assert client.output("import time; time.sleep(0.4); print('own')").endswith("own\n")


def test_a_session_stopped_at_a_time_limit_says_so_then_and_in_the_next_result(open_session):
    client = open_session()
    client.run("x = 1")
    late = client.run("print('so far', flush=True)\nwhile True: pass", run_timeout=0.4)
    assert late["run_result"]["status"] == "TimeLimitExceeded"
    assert (late["run_result"]["return_code"], late["run_result"]["stdout"]) == (None, "so far\n")
    assert late["message"] == ("the session's interpreter was stopped at the program's time limit: its state is lost")
    following = client.run("print('x' in globals())")
    assert (following["run_result"]["stdout"], following["session"]["num_programs"]) == ("False\n", 1)
    assert following["message"] == (
        "the session's interpreter was stopped at the program's time limit: this program ran in a new one"
    )
    assert client.run("1")["message"] == ""


def test_a_session_killed_by_its_program_says_so(open_session):
    client = open_session()
    killed = client.run("import os; os.kill(os.getpid(), 9)")
    assert (killed["status"], killed["run_result"]["return_code"]) == ("Failed", -9)
    assert killed["message"] == "the session's interpreter was killed by signal 9 (SIGKILL): its state is lost"
    assert client.run("1")["message"].endswith("this program ran in a new one")


def test_a_session_has_a_memory_limit_of_its_own(open_session):
    client = open_session()
    client.run("x = bytearray(100 << 20)", memory_limit_MB=256)
    over = client.run("y = bytearray(400 << 20)", memory_limit_MB=4096)
    assert over["run_result"]["stderr"].rstrip().endswith("MemoryError")
    assert client.output("print(len(x))") == f"{100 << 20}\n"


def test_an_idle_session_ends_and_its_next_result_says_so(sandbox, open_session):
    client = open_session()
    client.run("x = 1", session_idle_timeout=0.2)
    wait_for_sessions(sandbox, 0)
    following = client.run("print('x' in globals())")
    assert following["run_result"]["stdout"] == "False\n"
    assert "was closed after 0.2 s without a program" in following["message"]


def test_a_deleted_session_is_gone(sandbox, open_session):
    client = open_session()
    client.run("x = 1")
    assert [client.delete(), client.delete()] == [200, 404]
    assert sandbox.health()["sessions"] == 0
    again = client.run("print('x' in globals())")
    assert (again["run_result"]["stdout"], again["message"]) == ("False\n", "")


def test_programs_of_a_session_run_one_after_the_other(open_session):
    client = open_session()
    client.run("import time\nn = 0")
    code = "m = n\ntime.sleep(0.05)\nn = m + 1"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client.run, [code] * 4))
    assert client.output("print(n)") == "4\n"


def test_a_program_waits_for_its_session_no_longer_than_its_queue_time_out(sandbox, open_session, post):
    client = open_session()
    client.run("1")
    running = client.begin("import time; time.sleep(60)")
    wait_in_flight(sandbox, 1)
    answer = post("1", status=504, session_id=client.id, queue_timeout=0.1)
    assert answer["message"] == "an earlier program of the session still ran after 0.1 s; this one was not run"
    running.close()


def test_deleting_a_session_ends_the_program_in_it(sandbox, open_session):
    client = open_session()
    client.run("1")
    running = client.begin("import time; time.sleep(60)")
    wait_in_flight(sandbox, 1)
    assert client.delete() == 200
    answer = running.getresponse()
    assert answer.status == 409
    assert "was deleted while this program ran" in json.load(answer)["message"]


def test_a_session_takes_files_with_its_first_program_and_sends_files_back(open_session, post):
    client = open_session()
    given = {"in.txt": base64.b64encode(b"content").decode()}
    answer = client.run("open('out', 'w').write(open('in.txt').read() * 2)", files=given, fetch_files=["out", "none"])
    assert answer["files"] == {"out": base64.b64encode(b"contentcontent").decode()}
    refused = post("1", status=422, session_id=client.id, files=given)
    assert "files: a session takes files with its first program" in json.dumps(refused)


def test_a_client_that_goes_away_ends_the_program_and_the_state_is_told_lost(sandbox, open_session):
    client = open_session()
    client.run("x = 1")
    running = client.begin("import time; time.sleep(60)")
    wait_in_flight(sandbox, 1)
    running.close()
    wait_for_sessions(sandbox, 0)
    assert "its client went away" in client.run("1")["message"]


def stopped(sandbox) -> int:
    """Processes of the sandbox that are stopped."""
    return statuses(sandbox.pid, recursive=True).count(psutil.STATUS_STOPPED)


def wait_for_stopped(sandbox, number: int) -> None:
    deadline = time.monotonic() + 30
    while stopped(sandbox) != number:
        assert time.monotonic() < deadline, stopped(sandbox)
        time.sleep(0.01)


def test_a_session_is_stopped_between_its_programs_with_all_that_it_has_started(sandbox, open_session):
    client = open_session()
    client.run(
        "import subprocess, threading\nn = 0\n"
        "def count():\n    global n\n    while True: n += 1\n"
        "threading.Thread(target=count, daemon=True).start()\n"
        "child = subprocess.Popen(['sh', '-c', 'while :; do echo x; done'], stdout=subprocess.PIPE)"
    )
    wait_for_stopped(sandbox, 2)
    client.run("m = n\nwhile n == m: pass", fetch_files=["none"])
    assert client.output("print(child.stdout.readline(), n > m)") == "b'x\\n' True\n"
    wait_for_stopped(sandbox, 2)
    assert client.output("child.kill(); print(child.wait())") == "-9\n"
    wait_for_stopped(sandbox, 1)
    client.delete()
    wait_for_stopped(sandbox, 0)
