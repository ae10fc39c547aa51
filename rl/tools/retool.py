"""ReTool's code interpreter (arXiv:2504.11536): sends code to a sandbox in SandboxFusion's wire format."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import uuid
from dataclasses import dataclass
from typing import Any

import aiohttp

from rl.errors import ToolError
from rl.tools.base import ServiceUnavailableError, Tool, ToolConfig, ToolOutput
from rl.tools.repl import show_last_expression, strip_display
from rl.tools.service import ServiceClient
from rl.types import ToolStatus

logger = logging.getLogger(__name__)

_NO_OUTPUT = "(the code ran and printed nothing)"
_TRANSPORT_GRACE_S = 2.0
_RELEASE_TIMEOUT_S = 5.0
_MAX_STDERR_CHARACTERS = 4000


@dataclass
class ReToolConfig(ToolConfig):
    """Settings of `ReTool`."""

    sandbox_fusion_url: str = "embedded"
    """Address of `POST /run_code`. `embedded` means a sandbox that the run starts."""
    default_language: str = "python"
    memory_limit_mb: int = 1024
    """Memory of one program, or of the interpreter of one trajectory, MiB."""
    session: bool = False
    """Keep one Python interpreter per trajectory, so that a call sees the definitions of earlier calls."""


@dataclass(slots=True)
class InterpreterState:
    """One trajectory's interpreter in the sandbox."""

    session_id: str
    has_run: bool = False
    """Whether a program has run, so that state could be lost."""


class ReTool(Tool):
    """Runs the code of a call. For Python it also shows the value of a last expression."""

    config_class = ReToolConfig

    def __init__(self, config: ToolConfig, schema: dict[str, Any]) -> None:
        super().__init__(config, schema)
        patience_s = self.config.queue_timeout + 2 * self.config.default_timeout + _TRANSPORT_GRACE_S
        self._service = ServiceClient(patience_s, {"X-Caller": f"{socket.gethostname()}:{os.getpid()}"})

    @property
    def run_limit_s(self) -> float | None:
        """None: the sandbox has its own queue, and limits the run to `default_timeout`."""
        return None

    async def create(self, trajectory_id: str) -> InterpreterState | None:
        """Choose the session id of a trajectory, which cannot be guessed. None without `session`.

        The sandbox starts the interpreter with the first program.
        """
        return InterpreterState(uuid.uuid4().hex) if self.config.session else None

    async def release(self, state: InterpreterState | None) -> None:
        """End the trajectory's interpreter. If this fails, the sandbox ends it after its idle time."""
        if state is None:
            return
        url = f"{self._url().removesuffix('/run_code')}/sessions/{state.session_id}"
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S), self._service.session.delete(url):
                pass
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("%s: %s", url, error or type(error).__name__)

    async def execute(self, state: InterpreterState | None, arguments: dict[str, Any]) -> ToolOutput:
        """Run `arguments["code"]`.

        Args:
            state: The trajectory's interpreter; None to run a separate program.
            arguments: `code`, and optionally `language`.

        Returns:
            The program's output; after an error also the end of stderr.

        Raises:
            ServiceUnavailableError: No connection, a 5xx answer, or an answer that is not SandboxFusion's.
        """
        code, language = arguments["code"], arguments.get("language", self.config.default_language)
        body = {
            "code": show_last_expression(code) if language == "python" else code,
            "language": language,
            "compile_timeout": self.config.default_timeout,
            "run_timeout": self.config.default_timeout,
            "queue_timeout": self.config.queue_timeout,
            "memory_limit_MB": self.config.memory_limit_mb,
        }
        interpreter = state if language == "python" else None
        if interpreter is not None:
            body["session_id"] = interpreter.session_id
        answer = await self._service.post(self._url(), body)
        if isinstance(answer, str):
            return ToolOutput(f"Error: {answer}", ToolStatus.ERROR)
        run = answer.get("run_result") or answer.get("compile_result")
        if answer.get("status") == "SandboxError" or not isinstance(run, dict):
            raise ServiceUnavailableError(
                f"{self.config.sandbox_fusion_url}: {answer.get('message') or 'SandboxError'}"
            )
        output = _describe(run, self.config.default_timeout)
        output.metrics["sandbox_queue_s"] = float(answer.get("queue_time") or 0.0)
        if interpreter is not None:
            output.text = _join(_notice(interpreter, answer), output.text)
            interpreter.has_run = True
        return output

    def _url(self) -> str:
        url: str = self.config.sandbox_fusion_url
        if url == "embedded":
            raise ServiceUnavailableError("sandbox_fusion_url is 'embedded', and no sandbox was started for it")
        return url

    async def check(self) -> None:
        """Run a program that prints a number, or two programs in a session. An `embedded` sandbox is not checked.

        Raises:
            ToolError: The sandbox does not answer, or its answer is wrong.
        """
        if self.config.sandbox_fusion_url == "embedded":
            return
        advice = "Start it with `python -m rl sandbox`, or set sandbox_fusion_url: embedded"
        state = await self.create("check")
        try:
            code = "print(6 * 7)"
            if state is not None:
                await self.execute(state, {"code": "answer = 6 * 7", "language": "python"})
                code = "print(answer)"
            output = await self.execute(state, {"code": code, "language": "python"})
            await self.release(state)
        except ServiceUnavailableError as error:
            raise ToolError(
                f"{self.name}.sandbox_fusion_url: the sandbox does not answer, {error}. {advice}."
            ) from error
        finally:
            await self.close()
        if state is not None and output.status is ToolStatus.ERROR:
            raise ToolError(f"{self.name}.session: the sandbox has no sessions, got {output.text!r}. {advice}.")
        if output.text != "42":
            raise ToolError(f"{self.name}.sandbox_fusion_url: print(6 * 7) gave {output.text!r}, not 42. {advice}.")

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()


def _notice(state: InterpreterState, answer: dict[str, Any]) -> str:
    """What the model must know about its interpreter. The number of programs reveals a restarted sandbox."""
    session = answer.get("session")
    if answer.get("message"):
        return f"Note: {answer['message']}."
    if state.has_run and isinstance(session, dict) and session.get("num_programs") == 1:
        return "Note: the session's interpreter was restarted: what earlier calls defined is lost."
    return ""


def _describe(run: dict[str, Any], timeout: float) -> ToolOutput:
    """The text for the model about a program that ran."""
    stdout = strip_display(str(run.get("stdout") or "")).rstrip("\n")
    stderr = strip_display(str(run.get("stderr") or "")).strip("\n")[-_MAX_STDERR_CHARACTERS:]
    return_code = run.get("return_code")
    metrics = {"execution_s": float(run.get("execution_time") or 0.0)}
    if run.get("status") == "TimeLimitExceeded":
        text = _join(stdout, f"Error: the code timed out after {timeout:g} s.")
        return ToolOutput(text, ToolStatus.TIMEOUT, metrics=metrics)
    if run.get("status") == "Error" or return_code not in (0, None):
        text = _join(stdout, stderr, _ending(return_code, has_text=bool(stderr)))
        return ToolOutput(text, ToolStatus.ERROR, metrics=metrics)
    return ToolOutput(stdout or _NO_OUTPUT, metrics=metrics)


def _ending(return_code: Any, *, has_text: bool) -> str:
    """How the program ended, unless its stderr says so."""
    if isinstance(return_code, int) and return_code < 0:
        known = {int(s) for s in signal.Signals}
        name = f" ({signal.Signals(-return_code).name})" if -return_code in known else ""
        return f"Error: the program was killed by signal {-return_code}{name}."
    return "" if has_text else f"Error: the program exited with code {return_code}."


def _join(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
