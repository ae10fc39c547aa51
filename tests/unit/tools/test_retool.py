import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rl.errors import ToolError
from rl.services.embedded import EmbeddedSandbox
from rl.tools.registry import Toolbox, load_toolbox
from rl.types import ToolCall, ToolResult, ToolStatus

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "tools" / "retool_config.yaml"


@pytest.fixture(scope="module")
def sandbox():
    with EmbeddedSandbox(workers=4) as running:
        yield running


def toolbox_for(url: str, **changes: object) -> Toolbox:
    settings = {"sandbox_fusion_url": url, "default_timeout": 2.0, "queue_timeout": 5.0, **changes}
    return load_toolbox(CONFIG, overrides={"code_interpreter": settings})


async def run(url: str, *codes: str, **changes: object) -> list[ToolResult]:
    toolbox = toolbox_for(url, **changes)
    session = toolbox.open_session("p/0")
    calls = [ToolCall("code_interpreter", {"code": code}) for code in codes]
    try:
        return await asyncio.gather(*(session.execute(call) for call in calls))
    finally:
        await session.close()
        await toolbox.close()


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("print(1)\nprint(2)", ToolStatus.OK, "1\n2"),
        ("x = 6\nx * 7", ToolStatus.OK, "42"),
        ("x = 1", ToolStatus.OK, "(the code ran and printed nothing)"),
        ("import sys\nprint('a')\nsys.exit(3)", ToolStatus.ERROR, "a\nError: the program exited with code 3."),
        ("import os\nos.abort()", ToolStatus.ERROR, "Error: the program was killed by signal 6 (SIGABRT)."),
        (
            "x = 0\n1 / x",
            ToolStatus.ERROR,
            'Traceback (most recent call last):\n  File "main.py", line 2, in <module>\n    1 / x\n'
            "ZeroDivisionError: division by zero",
        ),
    ],
)
async def test_retool_shows_what_the_code_printed(sandbox, code, status, text):
    (result,) = await run(sandbox.url, code)
    assert (result.status, result.text) == (status, text)


async def test_retool_shows_syntax_errors_of_the_code_as_written(sandbox):
    (result,) = await run(sandbox.url, "x = (1,\nprint(x")
    assert result.status == ToolStatus.ERROR
    assert result.text.startswith('  File "main.py", line 2\n    print(x')
    assert "SyntaxError: '(' was never closed" in result.text


async def test_retool_time_out_keeps_the_output_so_far(sandbox):
    (result,) = await run(sandbox.url, "print('before')\nwhile True: pass", default_timeout=0.5)
    assert (result.status, result.text) == (ToolStatus.TIMEOUT, "before\nError: the code timed out after 0.5 s.")
    assert 0.4 < result.metrics["execution_s"] < 3


async def test_retool_waits_for_the_sandbox_queue(sandbox):
    results = await run(sandbox.url, *(f"import time; time.sleep(0.2); print({i})" for i in range(12)))
    assert [r.text for r in results] == [str(i) for i in range(12)]


async def run_in_turn(url: str, *codes: str, **changes: object) -> list[ToolResult]:
    """The calls of one trajectory, with a session."""
    toolbox = toolbox_for(url, session=True, **changes)
    session = toolbox.open_session("p/0")
    try:
        return [await session.execute(ToolCall("code_interpreter", {"code": code})) for code in codes]
    finally:
        await session.close()
        await toolbox.close()


async def test_retool_session_keeps_state_between_calls_and_ends_with_the_trajectory(sandbox):
    first, second = await run_in_turn(sandbox.url, "def f(x):\n    return x * 7\ny = 6", "f(y)")
    assert (first.text, second.text) == ("(the code ran and printed nothing)", "42")
    assert sandbox.health()["sessions"] == 0


async def test_retool_session_belongs_to_one_trajectory(sandbox):
    toolbox = toolbox_for(sandbox.url, session=True)
    one, other = toolbox.open_session("p/0"), toolbox.open_session("p/1")
    try:
        await one.execute(ToolCall("code_interpreter", {"code": "x = 1"}))
        result = await other.execute(ToolCall("code_interpreter", {"code": "'x' in globals()"}))
    finally:
        await one.close()
        await other.close()
        await toolbox.close()
    assert result.text == "False"


async def test_retool_session_tells_the_model_that_state_was_lost(sandbox):
    codes = ("x = 1", "print('so far', flush=True)\nwhile True: pass", "'x' in globals()")
    _, late, following = await run_in_turn(sandbox.url, *codes, default_timeout=0.6)
    lost = "Note: the session's interpreter was stopped at the program's time limit: "
    assert late.status is ToolStatus.TIMEOUT
    assert late.text == f"{lost}its state is lost.\nso far\nError: the code timed out after 0.6 s."
    assert following.text == f"{lost}this program ran in a new one.\nFalse"


async def test_retool_session_notices_a_sandbox_that_was_restarted():
    toolbox = None
    with EmbeddedSandbox(workers=1) as first:
        toolbox = toolbox_for(first.url, session=True, queue_timeout=20.0)
        session = toolbox.open_session("p/0")
        assert (await session.execute(ToolCall("code_interpreter", {"code": "x = 1; x"}))).text == "1"
    with EmbeddedSandbox(workers=1) as second:
        toolbox.tools["code_interpreter"].config.sandbox_fusion_url = second.url
        result = await session.execute(ToolCall("code_interpreter", {"code": "2"}))
        await session.close()
        await toolbox.close()
    assert result.text == "Note: the session's interpreter was restarted: what earlier calls defined is lost.\n2"


async def test_retool_without_a_service_is_unavailable():
    (result,) = await run("http://127.0.0.1:9/run_code", "1", queue_timeout=0.3, default_timeout=0.3)
    assert result.status == ToolStatus.UNAVAILABLE
    assert "http://127.0.0.1:9/run_code" in result.text


async def serve_answers(*answers: web.Response | dict[str, object]) -> TestServer:
    remaining = list(answers)

    async def handle(_: web.Request) -> web.Response:
        answer = remaining.pop(0)
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    application = web.Application()
    application.router.add_post("/run_code", handle)
    server = TestServer(application)
    await server.start_server()
    return server


async def test_retool_tries_again_after_5xx_and_sandbox_errors():
    good = {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "7\n"}}
    sandbox_error = {"status": "SandboxError", "message": "full", "run_result": None}
    server = await serve_answers(web.Response(status=503, text="busy"), sandbox_error, good)
    (result,) = await run(str(server.make_url("/run_code")), "7")
    assert (result.status, result.text) == (ToolStatus.OK, "7")
    await server.close()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_retool_tries_again_after_answers_that_are_not_the_requests_fault(status):
    good = {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "7\n"}}
    server = await serve_answers(web.Response(status=status, text="busy"), good)
    (result,) = await run(str(server.make_url("/run_code")), "7")
    assert (result.status, result.text) == (ToolStatus.OK, "7")
    await server.close()


async def test_retool_tells_the_sandbox_who_calls_and_how_long_it_waits():
    seen: list[tuple[str | None, dict[str, object]]] = []

    async def handle(http: web.Request) -> web.Response:
        seen.append((http.headers.get("X-Caller"), await http.json()))
        return web.json_response({"status": "Success", "run_result": {"return_code": 0, "stdout": "", "stderr": ""}})

    application = web.Application()
    application.router.add_post("/run_code", handle)
    server = TestServer(application)
    await server.start_server()
    await run(str(server.make_url("/run_code")), "1", "2")
    await server.close()
    callers, bodies = zip(*seen, strict=True)
    assert set(callers) == {f"{socket.gethostname()}:{os.getpid()}"}
    assert [(body["queue_timeout"], body["run_timeout"]) for body in bodies] == [(5.0, 2.0)] * 2
    assert all("session_id" not in body for body in bodies)


async def test_retool_does_not_repeat_a_refused_request():
    server = await serve_answers(web.Response(status=422, text="language: unknown"))
    (result,) = await run(str(server.make_url("/run_code")), "7")
    assert (result.status, result.text) == (ToolStatus.ERROR, "Error: language: unknown")
    await server.close()


def start_sandbox(port: int) -> subprocess.Popen[bytes]:
    program = f"from rl.services.sandbox.server import serve; serve(port={port}, workers=2)"
    return subprocess.Popen([sys.executable, "-c", program], cwd=CONFIG.parents[2])


async def wait_in_flight(port: int, number: int) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"http://127.0.0.1:{port}/health") as response:
                    if (await response.json())["in_flight"] == number:
                        return
            await asyncio.sleep(0.02)


async def test_retool_loses_no_call_to_a_sandbox_that_is_killed_and_started_again():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sandbox = start_sandbox(port)
    try:
        await wait_in_flight(port, 0)
        codes = [f"import time; time.sleep(0.4); print({i})" for i in range(8)]
        url = f"http://127.0.0.1:{port}/run_code"
        calls = asyncio.create_task(run(url, *codes, default_timeout=10.0, queue_timeout=30.0))
        await wait_in_flight(port, 8)
        sandbox.kill()
        sandbox.wait()
        sandbox = start_sandbox(port)
        results = await calls
    finally:
        sandbox.terminate()
        sandbox.wait()
    assert [(result.status, result.text) for result in results] == [(ToolStatus.OK, str(i)) for i in range(8)]


async def test_retool_check_finds_the_sandbox_or_says_what_to_do(sandbox):
    await toolbox_for(sandbox.url).check()
    await toolbox_for(sandbox.url, session=True).check()
    await toolbox_for("embedded").check()
    toolbox = toolbox_for("http://127.0.0.1:9/run_code")
    with pytest.raises(ToolError, match=r"code_interpreter.sandbox_fusion_url: .*python -m rl sandbox"):
        await toolbox.check()


async def test_retool_check_finds_a_sandbox_without_sessions():
    kept = {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": ""}}
    lost = {"status": "Failed", "run_result": {"status": "Finished", "return_code": 1, "stderr": "NameError: answer"}}
    server = await serve_answers(kept, lost)
    with pytest.raises(ToolError, match=r"code_interpreter.session: the sandbox has no sessions, got 'NameError"):
        await toolbox_for(str(server.make_url("/run_code")), session=True).check()
    await server.close()
