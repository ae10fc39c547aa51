"""Wrong requests are refused with a status that tells the caller not to retry."""

import json

import pytest

from tests.unit.services.conftest import post_json


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"language": "cobol"}, "language: must be 'python', 'bash', 'cpp' or 'nodejs', got 'cobol'"),
        ({"code": 3}, "code: must be a valid string, got 3"),
        (
            {"run_timeout": "soon"},
            "run_timeout: must be a valid number, unable to parse string",
        ),
        ({"run_timeout": 0}, "run_timeout: must be greater than 0, got 0"),
        ({"memory_limit_MB": [1]}, "memory_limit_MB: must be a valid number, got [1]"),
        ({"files": {"../x": ""}}, "leads out of the program's folder"),
        ({"files": {"/etc/x": ""}}, "leads out of the program's folder"),
        ({"fetch_files": ["a/../../x"]}, "leads out of the program's folder"),
        ({"files": {"a": "***"}}, "'a' is not base64"),
        ({"files": {"a": "", "a/b": ""}}, "'a' is a file and also the folder of another file"),
        ({"files": {"main.py/b": ""}}, "'main.py' is a file and also the folder of another file"),
        ({"files": {"a": "", "./a": ""}}, "'a' is given twice, in two spellings"),
        ({"files": {"": ""}}, "files: a path must be a non-empty Unicode string without zeros, got ''"),
        ({"files": {"a\0b": ""}}, "files: a path must be a non-empty Unicode string without zeros"),
        ({"files": {".": ""}}, "files: '.' leads out of the program's folder"),
        ({"files": {"n" * 256: ""}}, "is too long; a path may have 255 bytes in each name and 1024 in all"),
        ({"files": {"é" * 128: ""}}, "is too long"),
        ({"files": {"/".join(["d"] * 513): ""}}, "is too long"),
        ({"fetch_files": ["n" * 256]}, "fetch_files: 'nnnn"),
        ({"fetch_files": ["a\0"]}, "fetch_files: a path must be a non-empty Unicode string"),
        ({"fetch_files": [f"f{i}" for i in range(1001)]}, "at most 1000 paths and 48 KiB of them, got 1001 paths"),
        ({"files": {f"f{i}": "" for i in range(8192)}}, "and 8192 files and folders, got 0 MiB in 8192 files"),
        ({"files": {"a": [[[["x"] * 99] * 99] * 9]}}, "'a' is not base64"),
        ({"queue_timeout": [[[["x"] * 99] * 99] * 9]}, "queue_timeout: must be a valid number, got [[[["),
        ({"language": ["python"]}, "nodejs', got ['python']"),
        ({"stdin": 4}, "stdin: must be a string, got 4"),
        ({"queue_timeout": -1}, "queue_timeout: must be greater than 0, got -1"),
        ({"compile_timeout": "nan"}, "compile_timeout: must be a finite number, got 'nan'"),
        ({"files": {"\ud800": ""}}, "a path must be a non-empty Unicode string"),
        ({"session_id": "a/b"}, "session_id: String must match pattern '^[A-Za-z0-9_.:-]{1,128}$', got 'a/b'"),
        ({"session_id": "\ud800"}, "session_id: must be a valid string"),
        ({"run_timeout": True}, "run_timeout: must be a number, got True"),
        ({"run_timeout": "1e999"}, "run_timeout: must be a finite number, got '1e999'"),
        ({"run_timeout": 10**400}, "run_timeout: must be a valid number, got 1000"),
        ({"code": None}, "code: is missing"),
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
