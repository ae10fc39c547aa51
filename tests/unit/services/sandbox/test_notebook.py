import base64
import json

import pytest

from rl.services.json_body import RequestError
from rl.services.sandbox.request import parse_notebook
from tests.unit.services.conftest import post_json


@pytest.fixture
def run(sandbox):
    def send(*cells: str, **fields: object) -> dict:
        url = sandbox.url.replace("/run_code", "/run_jupyter")
        return post_json(url, json.dumps({"cells": cells, "total_timeout": 10, **fields}).encode(), 200)

    return send


def test_cells_share_their_names_and_keep_their_output_apart(run):
    answer = run(
        "a = 123", "a", "print(a, 'é')", "import sys; sys.stderr.write('to stderr')", "import os; os.system('echo x')"
    )
    nothing = {"stdout": "", "stderr": "", "display": [], "error": []}
    assert answer["cells"] == [
        nothing,
        nothing | {"display": [{"text/plain": "123"}]},
        nothing | {"stdout": "123 é\n"},
        nothing | {"stderr": "to stderr", "display": [{"text/plain": "9"}]},
        nothing | {"stdout": "x\n", "display": [{"text/plain": "0"}]},
    ]
    assert (answer["status"], answer["driver"]["status"], answer["files"]) == ("Success", "Finished", {})


def test_an_error_is_told_with_its_traceback_and_the_next_cell_runs(run):
    cells = run("def f():\n    raise RuntimeError('no')", "f()", "x = (", "exit(3)", "print('on')")["cells"]
    assert [cell["error"] and cell["error"][0]["ename"] for cell in cells] == [
        [],
        "RuntimeError",
        "SyntaxError",
        "SystemExit",
        [],
    ]
    assert cells[1]["error"][0]["evalue"] == "no"
    assert cells[1]["error"][0]["traceback"] == [
        "Traceback (most recent call last):",
        '  File "cell 2", line 1, in <module>',
        "    f()",
        '  File "cell 1", line 2, in f',
        "    raise RuntimeError('no')",
        "RuntimeError: no",
    ]
    assert cells[4]["stdout"] == "on\n"


def test_a_cell_ends_at_its_time_out_and_the_next_one_runs(run):
    cells = run("print('before')\nwhile True: pass", "print('after')", cell_timeout="0.3")["cells"]
    assert (cells[0]["stdout"], cells[0]["error"][0]["evalue"]) == ("before\n", "the cell ran for 0.3 s")
    assert (cells[1]["stdout"], cells[1]["error"]) == ("after\n", [])


def test_a_notebook_ends_at_its_time_out_and_keeps_what_was_done(run):
    answer = run("1", "import time\nprint('so far', flush=True)\ntime.sleep(60)", "2", total_timeout=0.7)
    assert (answer["status"], answer["driver"]["status"]) == ("Failed", "TimeLimitExceeded")
    assert [cell["stdout"] for cell in answer["cells"]] == ["", "so far\n"]
    assert answer["cells"][1]["error"][0]["ename"] == "TimeoutError"


def test_a_notebook_whose_interpreter_dies_says_so(run):
    answer = run("1", "import os; os.kill(os.getpid(), 9)", "2")
    assert (answer["status"], answer["driver"]["return_code"], len(answer["cells"])) == ("Failed", -9, 2)
    assert answer["cells"][1]["error"][0]["ename"] == "DeadKernelError"


def test_files_go_in_and_come_out(run):
    given = {"in.txt": base64.b64encode(b"content").decode()}
    answer = run("t = open('in.txt').read()", "open('out.txt', 'w').write(t * 2)", files=given, fetch_files=["out.txt"])
    assert answer["files"] == {"out.txt": base64.b64encode(b"contentcontent").decode()}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"cells": "print(1)"}, "cells: must be a valid list"),
        ({"cells": [1]}, "cells.0: must be a valid string, got 1"),
        ({"kernel": "ir"}, "kernel: must be 'python3', got 'ir'"),
        ({"total_timeout": 0}, "total_timeout: must be greater than 0, got 0"),
        ({"cell_timeout": -1}, "cell_timeout: must be greater than or equal to 0, got -1"),
    ],
)
def test_wrong_notebooks_are_refused_by_name(fields, part):
    with pytest.raises(RequestError, match=part):
        parse_notebook({"cells": ["1"], **fields})
