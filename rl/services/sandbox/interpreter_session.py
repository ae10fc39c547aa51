"""The server's end of a session, which is a Python interpreter that keeps its state between calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rl.errors import ServiceError
from rl.services.sandbox.activity import PAUSE, RESUME
from rl.services.sandbox.job import memory_file, parse_files, parse_object
from rl.services.sandbox.outcome import (
    FORGED,
    MAX_OUTPUT_BYTES,
    OUT_OF_MEMORY,
    Capture,
    RunOutcome,
    Status,
    is_return_code,
    only_requested,
    parse_ending,
)
from rl.services.sandbox.program import LARGEST_MESSAGE

_END_GRACE_S, _GRACE_S = 5.0, 15.0
_MAX_FETCH_BYTES = 65 << 20


class InterpreterSession:
    """A Python interpreter that keeps its state between calls. Ends with the pool.

    Its processes are stopped between two calls. The code of a call can write anything to the session's channel: a
    message that is not an answer to the call ends the session, and counts as the code's fault.
    """

    def __init__(self, cells: socket.socket, status: Status, control: int) -> None:
        """Take over what `SandboxPool.open_session` started.

        Args:
            cells: For `rl.services.sandbox.program.serve_cells`. Its other end closes with the session's last process.
            status: Status of the session's worker; done once the worker has killed all processes.
            control: A pipe for the commands of `rl.services.sandbox.activity`.
        """
        self._cells, self._status, self._control = cells, status, control
        self._cells.setblocking(False)
        os.set_blocking(self._control, False)
        self._is_closed = False
        self._num_calls = 0

    @property
    def is_alive(self) -> bool:
        """False after it ended by itself, by a timeout, by too much memory, by a forged answer, or by `close`."""
        return not self._is_closed and not self._status.done.done()

    async def run(
        self,
        code: str,
        *,
        stdin: bytes = b"",
        timeout: float,
        on_waiting: Callable[[bool], None] | None = None,
    ) -> RunOutcome:
        """Execute code in the session's namespace, one call at a time.

        An exception goes to stderr with return code 1. `exit(n)` ends only the call, with return code n. A timeout or
        a cancellation kills the session.

        Args:
            code: Any number of statements.
            stdin: The standard input.
            timeout: Seconds.
            on_waiting: Called with True when the code begins to wait for something, with False when it continues.

        Returns:
            The outcome. If the session died, the return code is that of its process.

        Raises:
            ServiceError: The session had ended before the call, or failed.
        """
        if not self.is_alive:
            raise ServiceError("sandbox: the session has ended. Open another.")
        start = time.monotonic()
        self._num_calls += 1
        with ExitStack() as stack:
            try:
                stdout, stderr = (stack.enter_context(Capture(MAX_OUTPUT_BYTES)) for _ in range(2))
                stack.enter_context(self._resumed(on_waiting))
                self._send({"run": True}, [code.encode("utf-8", "replace"), stdin], stdout, stderr)
                ending = await self._reply(timeout)
            except OSError as error:
                await asyncio.shield(self.close())
                raise ServiceError(f"sandbox: the session does not accept code, {error}. Open another.") from error
            except BaseException:
                await asyncio.shield(self.close())
                raise
            elapsed = time.monotonic() - start
            for capture in (stdout, stderr):
                capture.drain()
            note = FORGED if ending.is_forged else OUT_OF_MEMORY if ending.out_of_memory else ""
            return RunOutcome(ending.return_code, ending.is_late, elapsed, stdout.text(), stderr.text() + note, {})

    async def fetch(self, names: tuple[str, ...]) -> dict[str, bytes] | None:
        """Read files in its folder.

        Args:
            names: Relative paths.

        Returns:
            Contents of the existing files, by path; None if the answer was forged, which ends the session.

        Raises:
            ServiceError: The session had ended, or did not answer.
        """
        if not self.is_alive:
            raise ServiceError("sandbox: the session has ended. Open another.")
        try:
            with self._resumed(None), Capture(_MAX_FETCH_BYTES, _MAX_FETCH_BYTES) as pipe:
                self._send({"fetch": names}, [], pipe)
                await asyncio.wait({pipe.done}, timeout=_GRACE_S)
                if not pipe.done.done():
                    raise ServiceError(f"sandbox: the session did not send its files within {_GRACE_S:g} s.")
                return only_requested(parse_files(bytes(pipe.content))[1], names)
        except ValueError:
            await self.close()
            return None
        except OSError as error:
            raise ServiceError(f"sandbox: the session's files could not be read, {error}.") from error

    def has_forged_message(self) -> bool:
        """Whether a message has arrived without a request, because the session's code wrote to the channel."""
        poll = select.poll()
        poll.register(self._cells, select.POLLIN)
        return any(events & select.POLLIN and not events & select.POLLHUP for _, events in poll.poll(0))

    async def close(self) -> None:
        """Kill all its processes and wait for their end. Closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self._status.finish()
        os.close(self._control)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_END_GRACE_S):
                while await loop.sock_recv(self._cells, LARGEST_MESSAGE):
                    pass  # until the last process that holds the other end is gone
        self._cells.close()

    @contextmanager
    def _resumed(self, on_waiting: Callable[[bool], None] | None) -> Iterator[None]:
        """Let its processes run within the block."""
        self._status.on_waiting = on_waiting
        self._command(RESUME)
        try:
            yield
        finally:
            self._status.on_waiting = None
            if not self._is_closed:
                self._command(PAUSE)

    def _command(self, command: bytes) -> None:
        with contextlib.suppress(OSError):  # its worker is gone; the call will notice
            os.write(self._control, command)

    def _send(self, message: dict[str, object], contents: list[bytes], *captures: Capture) -> None:
        with ExitStack() as sent:
            descriptors = []
            for content in contents:
                descriptors.append(memory_file(content))
                sent.callback(os.close, descriptors[-1])
            for capture in captures:
                descriptors.append(capture.write_end)
                sent.callback(capture.close_write_end)
            socket.send_fds(self._cells, [json.dumps(message).encode()], descriptors)

    async def _reply(self, timeout: float) -> _CallEnding:
        """Wait for the end of the call. If the session has died, close it."""
        loop = asyncio.get_running_loop()
        text: bytes | None
        try:
            async with asyncio.timeout(timeout):
                text = await loop.sock_recv(self._cells, LARGEST_MESSAGE)
        except TimeoutError:
            text = None
        except ConnectionResetError:  # it died before it had read everything
            text = b""
        if text:
            code = _return_code(text, self._num_calls)
            if code is None:
                await self.close()
                return _CallEnding(-signal.SIGKILL, is_forged=True)
            return _CallEnding(code)
        is_late = text is None and not self._status.done.done()
        if not is_late:
            await asyncio.wait({self._status.done}, timeout=_GRACE_S)
        is_forged = not is_late and not self._status.done.done()  # it is alive and has closed or abused its channel
        await self.close()
        if is_late or is_forged:
            return _CallEnding(None if is_late else -signal.SIGKILL, is_late=is_late, is_forged=is_forged)
        try:
            ending = parse_ending(bytes(self._status.content))[0]
        except ValueError as error:  # the worker was killed before it could report, or could not start
            raise ServiceError(f"sandbox: the session's worker failed, {error}. Open another.") from error
        return _CallEnding(ending.return_code, out_of_memory=ending.out_of_memory)


@dataclass(slots=True, frozen=True)
class _CallEnding:
    return_code: int | None
    """None after a timeout."""
    is_late: bool = False
    out_of_memory: bool = False
    is_forged: bool = False


def _return_code(text: bytes, number: int) -> int | None:
    """The return code in the answer to this call; None if the text is anything else."""
    try:
        answer = parse_object(text)
    except ValueError:
        return None
    code = answer.get("return_code")
    return code if answer == {"number": number, "return_code": code} and is_return_code(code) else None
