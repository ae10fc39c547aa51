"""A Python interpreter whose state outlives a call: the server's end of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from contextlib import ExitStack

from rl.errors import ServiceError
from rl.services.job import memory_file, parse_files
from rl.services.program import LARGEST_MESSAGE
from rl.services.sandbox_outcome import MAX_OUTPUT_BYTES, OUT_OF_MEMORY, Capture, RunOutcome

_END_GRACE_S = 5.0
_MAX_FETCH_BYTES = 65 << 20


class InterpreterSession:
    """A Python interpreter whose state outlives a call. Ends with the pool."""

    def __init__(self, cells: socket.socket, status: Capture) -> None:
        """Take over what `SandboxPool.open_session` started.

        Args:
            cells: For `rl.services.program.serve_cells`; its other end closes with the session's last process.
            status: Of the session's worker; done when that has killed all processes.
        """
        self._cells, self._status = cells, status
        self._cells.setblocking(False)
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        """False after it ended by itself, by a time-out, by too much memory, or by `close`."""
        return not self._is_closed and not self._status.done.done()

    async def run(self, code: str, *, stdin: bytes = b"", timeout: float) -> RunOutcome:
        """Execute code in the session's namespace; one call at a time.

        An exception is shown on stderr with return code 1, `exit(n)` ends the call alone, with return code n. When the
        time is up the session is killed: `timed_out` is set and `is_alive` is False from then on. So it is when the
        call is cancelled.

        Args:
            code: Any number of statements.
            stdin: What it may read.
            timeout: Seconds.

        Returns:
            What the call did. A session that died has the return code of its process.

        Raises:
            ServiceError: It was not alive when the call began, or failed.
        """
        if not self.is_alive:
            raise ServiceError("sandbox: the session has ended. Open another.")
        start = time.monotonic()
        with ExitStack() as stack:
            stdout, stderr = (stack.enter_context(Capture(MAX_OUTPUT_BYTES)) for _ in range(2))
            try:
                self._send(
                    {"run": True}, [memory_file(code.encode("utf-8", "replace")), memory_file(stdin)], stdout, stderr
                )
                reply = await self._reply(timeout)
            except BaseException:
                await asyncio.shield(self.close())
                raise
            elapsed = time.monotonic() - start
            is_late = reply is None and self.is_alive
            if reply is None:
                await self.close()
            for capture in (stdout, stderr):
                capture.drain()
            note = ""
            if reply is None and not is_late:
                reply, note = self._ending()
            return RunOutcome(reply, is_late, elapsed, stdout.text(), stderr.text() + note, {})

    async def fetch(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Read files of its folder.

        Args:
            names: Relative paths.

        Returns:
            Those that exist, by their path as asked.

        Raises:
            ServiceError: It was not alive, or did not answer.
        """
        if not self.is_alive:
            raise ServiceError("sandbox: the session has ended. Open another.")
        with Capture(_MAX_FETCH_BYTES, _MAX_FETCH_BYTES) as pipe:
            try:
                self._send({"fetch": names}, [], pipe)
                await asyncio.wait({pipe.done}, timeout=_END_GRACE_S)
                return parse_files(bytes(pipe.content))[1]
            except (OSError, ValueError) as error:
                raise ServiceError(f"sandbox: the session's files could not be read, {error}.") from error

    async def close(self) -> None:
        """Kill all its processes. Nothing of it is left when this returns; closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self._status.finish()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_END_GRACE_S):
                while await loop.sock_recv(self._cells, LARGEST_MESSAGE):
                    pass  # until the last process that holds the other end is gone
        self._cells.close()

    def _send(self, message: dict[str, object], files: list[int], *captures: Capture) -> None:
        try:
            descriptors = [*files, *(capture.write_end for capture in captures)]
            socket.send_fds(self._cells, [json.dumps(message).encode()], descriptors)
        except OSError as error:
            raise ServiceError(f"sandbox: the session does not take code, {error}. Open another.") from error
        finally:
            for descriptor in files:
                os.close(descriptor)
            for capture in captures:
                capture.close_write_end()

    async def _reply(self, timeout: float) -> int | None:
        """The call's return code; None when the time was up or the session died."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                text = await loop.sock_recv(self._cells, LARGEST_MESSAGE)
            if text:
                return int(json.loads(text)["return_code"]) & 0xFF
            await asyncio.wait({self._status.done}, timeout=_END_GRACE_S)
            return None
        except TimeoutError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ServiceError(f"sandbox: the session's answer makes no sense, {error}. Open another.") from error

    def _ending(self) -> tuple[int | None, str]:
        """The return code of a session that died, and what to tell about it."""
        try:
            ending = parse_files(bytes(self._status.content))[0]
        except ValueError:
            return None, ""
        return ending["return_code"], OUT_OF_MEMORY if ending["out_of_memory"] else ""
