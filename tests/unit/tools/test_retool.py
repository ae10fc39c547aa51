import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rl.errors import ToolError
from rl.services.sandbox import EmbeddedSandbox
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


async def test_retool_does_not_repeat_a_refused_request():
    server = await serve_answers(web.Response(status=422, text="language: unknown"))
    (result,) = await run(str(server.make_url("/run_code")), "7")
    assert (result.status, result.text) == (ToolStatus.ERROR, "Error: language: unknown")
    await server.close()


async def test_retool_check_finds_the_sandbox_or_says_what_to_do(sandbox):
    await toolbox_for(sandbox.url).check()
    await toolbox_for("embedded").check()
    toolbox = toolbox_for("http://127.0.0.1:9/run_code")
    with pytest.raises(ToolError, match=r"code_interpreter.sandbox_fusion_url: .*python -m rl sandbox"):
        await toolbox.check()
