"""The code of a session can write anything to the session's channel. That harms only its own session."""

import json
import urllib.request
import uuid

import pytest

from rl.services.sandbox.job import parse_files
from rl.services.sandbox.notebook import cell_results
from rl.services.sandbox.outcome import RunOutcome, parse_ending
from tests.unit.services.conftest import post_json

NOTE = "killed: it wrote to the channel by which the sandbox talks to its session"
LOST = "the session's interpreter was killed by signal 9 (SIGKILL): its state is lost"
CHANNEL = """
import os, socket, stat
for descriptor in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            channel = socket.socket(fileno=descriptor)
            break
    except OSError: pass
"""
INTERPRETER = """
import sys
frame = sys._getframe()
while 'serve_cells' not in frame.f_globals: frame = frame.f_back
"""


@pytest.fixture
def session(sandbox, post):
    session_id = uuid.uuid4().hex
    yield lambda code, **fields: post(code, session_id=session_id, **fields)
    url = sandbox.url.replace("/run_code", f"/sessions/{session_id}")
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30).close()


@pytest.mark.parametrize(
    "answer",
    [
        "b'[' * 60_000",
        """b'{"number": 2, "return_code": 1e999}'""",
        """b'{"number": 2, "return_code": NaN}'""",
        """b'{"number": 2, "return_code": 0.0}'""",
        """b'{"number": 2, "return_code": true}'""",
        """b'{"number": 2, "return_code": null}'""",
        """b'{"number": 2, "return_code": "0"}'""",
        """b'{"number": 2, "return_code": 256}'""",
        """b'{"number": 2, "return_code": [[]]}'""",
        """b'{"number": 2, "return_code": ' + b'9' * 5000 + b'}'""",
        """b'{"number": 2, "return_code": 0, "x": "' + b'x' * 70_000 + b'"}'""",
        """b'{"number": 1, "return_code": 0}'""",
        """b'{"number": true, "return_code": 0}'""",
        """b'{"return_code": 0}'""",
        "b'7'",
        "b'{}'",
        "bytes([255])",
    ],
)
def test_a_forged_answer_fails_the_program_that_wrote_it(session, post, answer):
    session("x = 1")
    forged = session(f"{CHANNEL}\nprint('before', flush=True)\nchannel.send({answer})")
    run = forged["run_result"]
    assert (forged["status"], run["status"], run["return_code"]) == ("Failed", "Finished", -9)
    assert (run["stdout"], forged["message"]) == ("before\n", LOST)
    assert NOTE in run["stderr"]
    following = session("print('x' in globals())")
    assert (following["status"], following["run_result"]["stdout"]) == ("Success", "False\n")
    assert post("print(1)")["status"] == "Success"


def test_an_answer_ahead_of_time_is_not_taken_for_the_next_program(session):
    first = session(f"{CHANNEL}\nchannel.send(b'{{\"number\": 1, \"return_code\": 3}}')\nos.write(1, b'late')")
    assert first["run_result"]["return_code"] == 3
    second = session("print('channel' in globals())")
    if second["status"] == "Success":  # the interpreter's own answer had come before the interpreter was stopped
        assert second["run_result"]["stdout"] == "False\n"
        assert "an earlier program wrote to the session's channel: this program ran in a new one" in second["message"]
    else:
        assert (second["run_result"]["return_code"], second["message"]) == (-9, LOST)
        assert NOTE in second["run_result"]["stderr"]
    assert session("print('channel' in globals())")["run_result"]["stdout"] == "False\n"


def test_a_closed_channel_ends_the_session_as_its_own_fault(session):
    session("x = 1")
    ended = session(f"{CHANNEL}\nchannel.close()\nos._exit(5)")
    assert (ended["status"], ended["run_result"]["return_code"]) == ("Failed", 5)


@pytest.mark.parametrize(
    "text",
    [
        """b'{"files": [["../a", 1]]}\\nx'""",
        """b'{"files": [["/etc/passwd", 1]]}\\nx'""",
        """b'{"files": [["b", 1]]}\\nx'""",
        """b'{"files": [["a", -1]]}\\n'""",
        """b'{"files": [["a", 1e999]]}\\nx'""",
        """b'{"files": [["a", true]]}\\nx'""",
        """b'{"files": [[["a"], 1]]}\\nx'""",
        """b'{"files": [["a", 5]]}\\nx'""",
        """b'{"files": {"a": 1}}\\nx'""",
        """b'{}\\n'""",
        """b'[' * 200_000""",
        """b''""",
    ],
)
def test_forged_files_fail_the_program_that_wrote_them(session, text):
    code = f"{INTERPRETER}\nframe.f_globals['write_files'] = lambda pipe, *_: pipe.write({text})"
    forged = session(code, fetch_files=["a"])
    assert (forged["status"], forged["run_result"]["return_code"], forged["files"]) == ("Failed", -9, {})
    assert NOTE in forged["run_result"]["stderr"]
    assert session("print(1)")["run_result"]["stdout"] == "1\n"


def test_parse_ending_takes_an_outcome_and_nothing_else():
    good = {"return_code": -9, "timed_out": False, "out_of_memory": True, "execution_time": 0.5, "files": [["a", 1]]}
    ending, files = parse_ending(b"-+-" + json.dumps(good).encode() + b"\nx", ("a", "b"))
    assert (ending.return_code, ending.timed_out, ending.out_of_memory, ending.execution_time) == (-9, False, True, 0.5)
    assert files == {"a": b"x"}
    for wrong in (
        {"return_code": True},
        {"return_code": 1000},
        {"timed_out": 0},
        {"out_of_memory": None},
        {"execution_time": float("inf")},
        {"execution_time": -1.0},
        {"execution_time": "0.5"},
        {"files": [["c", 1]]},
        {"error": "no space"},
    ):
        with pytest.raises(ValueError):
            parse_ending(json.dumps(good | wrong).encode() + b"\nx", ("a", "b"))
    with pytest.raises(ValueError, match="it is nested too deeply"):
        parse_files(b"[" * 100_000)


def test_a_forged_notebook_shows_the_cells_before_the_forgery():
    right = {"stdout": "", "stderr": "", "display": [{"text/plain": "1"}], "error": []}
    error = {"ename": "E", "evalue": "e", "traceback": ["t"]}
    cells = [right, right | {"error": [error]}]
    wrong = [
        right | {"stdout": 5},
        right | {"stderr": None},
        right | {"display": {}},
        right | {"display": [{"text/plain": float("nan")}]},
        right | {"error": [{}]},
        right | {"error": [error | {"traceback": "t"}]},
        right | {"more": 1},
        [],
        1e999,
    ]
    lines = b"".join(json.dumps(cell).encode() + b"\n" for cell in cells)
    others = [json.dumps(value).encode() for value in wrong]
    for other in (*others, b"[" * 100_000, b"\xff", b"", b"\n" * (10 << 20)):
        assert read(lines + other + b"\n" + lines) == cells
    told = read(lines + b" " * (17 << 20))
    assert [cell["error"] and cell["error"][0]["ename"] for cell in told] == [[], "E", "OutputLimitError"]


def read(outputs: bytes) -> list:
    return cell_results(RunOutcome(0, False, 0.1, "", "", {".notebook_outputs.jsonl": outputs}))


def test_a_notebook_that_writes_among_its_cells_is_answered(sandbox):
    cells = [
        "import os\nos.write(os.open('.notebook_outputs.jsonl', os.O_WRONLY | os.O_APPEND), b'[' * 60_000 + b'\\n')"
    ]
    url = sandbox.url.replace("/run_code", "/run_jupyter")
    answer = post_json(url, json.dumps({"cells": cells}).encode(), 200)
    assert (answer["status"], len(answer["cells"]) <= 1) == ("Success", True)
