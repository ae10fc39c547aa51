"""What is wrong with a request is told as the caller's mistake, which is not worth another try."""

import json

import pytest

from tests.unit.services.conftest import post_json


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"language": "cobol"}, "must be one of python, bash, cpp, nodejs"),
        ({"code": 3}, "code: must be a text"),
        ({"run_timeout": "soon"}, "run_timeout: must be a number, got 'soon'"),
        ({"run_timeout": 0}, "run_timeout: must be above 0"),
        ({"memory_limit_MB": [1]}, "memory_limit_MB: must be a number"),
        ({"files": {"../x": ""}}, "leads out of the program's directory"),
        ({"files": {"/etc/x": ""}}, "leads out of the program's directory"),
        ({"fetch_files": ["a/../../x"]}, "leads out of the program's directory"),
        ({"files": {"a": "***"}}, "'a' is not base64"),
        ({"files": {"a": "", "a/b": ""}}, "'a' is a file and a folder of another one"),
        ({"files": {"main.py/b": ""}}, "'main.py' is a file and a folder of another one"),
        ({"files": {"a": "", "./a": ""}}, "'a' is given twice, in two spellings"),
        ({"files": {"": ""}}, "files: a path must be a text of Unicode, not empty and without zeros, got ''"),
        ({"files": {"a\0b": ""}}, "files: a path must be a text of Unicode, not empty and without zeros"),
        ({"files": {".": ""}}, "files: '.' leads out of the program's directory"),
        ({"files": {"n" * 256: ""}}, "is too long; a path may have 255 bytes of each name and 1024 of all"),
        ({"files": {"é" * 128: ""}}, "is too long"),
        ({"files": {"/".join(["d"] * 513): ""}}, "is too long"),
        ({"fetch_files": ["n" * 256]}, "fetch_files: 'nnnn"),
        ({"fetch_files": ["a\0"]}, "fetch_files: a path must be a text"),
        ({"fetch_files": [f"f{i}" for i in range(1001)]}, "at most 1000 paths and 48 KiB of them, got 1001 paths"),
        ({"files": {f"f{i}": "" for i in range(8192)}}, "and 8192 files and folders, got 0 MiB in 8192 files"),
        ({"files": {"a": [[[["x"] * 99] * 99] * 9]}}, "'a' is not base64"),
        ({"queue_timeout": [[[["x"] * 99] * 99] * 9]}, "queue_timeout: must be a number, got [[[["),
        ({"language": ["python"]}, "language: got ['python'], must be one of python"),
        ({"stdin": 4}, "stdin: must be a text"),
        ({"queue_timeout": -1}, "queue_timeout: must be above 0"),
        ({"compile_timeout": "nan"}, "compile_timeout: must be a number, got 'nan'"),
        ({"files": {"\ud800": ""}}, "a path must be a text"),
        ({"session_id": "a/b"}, "session_id: must be up to 128 letters"),
        ({"session_id": "a", "language": "bash"}, "session_id: a session runs python, got bash"),
    ],
)
def test_wrong_requests_are_refused_by_name(sandbox, fields, part):
    body = {"code": "print(1)", "language": "python", **fields}
    assert part in post_json(sandbox.url, json.dumps(body).encode(), 422)["detail"]


def test_a_body_that_is_not_json_is_refused(sandbox):
    for body in (b"{", b"\xff", b"[" * 200_000, b"[" * 700_000, b"1" * 5000, b'{"code": ' + b"1" * 600_000 + b"}"):
        assert "not JSON" in post_json(sandbox.url, body, 400)["detail"]
    assert "must be a JSON object" in post_json(sandbox.url, b"[1]", 422)["detail"]


def test_paths_in_other_spellings_are_taken(post):
    code = "import os; print(sorted(os.listdir('.')), sorted(os.listdir('a')))"
    answer = post(code, files={"./a//b": "", "a/c/": "", "é" * 127: "", "a d\n": ""}, fetch_files=["a/./b", "a//c"])
    assert answer["run_result"]["stdout"] == f"['a', 'a d\\n', 'main.py', '{'é' * 127}'] ['b', 'c']\n"
    assert answer["files"] == {"a/./b": "", "a//c": ""}
