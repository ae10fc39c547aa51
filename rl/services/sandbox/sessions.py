"""Sessions by id. The programs of a session run in one interpreter."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from rl.errors import ServiceError
from rl.services.json_body import RequestError
from rl.services.sandbox.admission import QueueFullError, QueueTimeoutError, RefusedError
from rl.services.sandbox.interpreter_session import InterpreterSession
from rl.services.sandbox.outcome import FORGED, RunOutcome
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import RunRequest

logger = logging.getLogger(__name__)

_MAX_SESSIONS = 1024
_REMEMBER_S = 3600.0
"""How long a session without an interpreter remembers why its state was lost."""


class SessionClosedError(RefusedError):
    """The session was deleted while a program of it waited or ran."""

    http_status = 409


@dataclass(slots=True)
class Session:
    """One session. It may have no interpreter at the moment."""

    id: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the running program, since programs of a session must not overlap."""
    interpreter: InterpreterSession | None = None
    running: asyncio.Task[RunOutcome] | None = None
    num_programs: int = 0
    """Programs of this interpreter, including the current one."""
    lost: str | None = None
    """Why the previous interpreter is gone, until a result has reported it."""
    is_closed: bool = False
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, frozen=True)
class SessionOutcome:
    """The outcome of a program in its session."""

    outcome: RunOutcome
    num_programs: int
    """Programs of this interpreter so far; 1 means that the state is new."""
    message: str
    """How state was lost, before this program or by it; usually empty."""


class SessionTable:
    """All sessions of a server."""

    def __init__(self, pool: SandboxPool) -> None:
        self._pool = pool
        self._sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.num_open = 0
        """Interpreters that are alive."""
        self.num_lost = 0
        """Interpreters that ended before their session was deleted."""

    @asynccontextmanager
    async def take_turn(self, request: RunRequest) -> AsyncIterator[Session]:
        """Wait until no other program runs in the request's session, which may be new.

        Raises:
            QueueTimeoutError: An earlier program still ran after `queue_timeout`.
            SessionClosedError: The session was deleted in the meantime.
        """
        assert request.session_id is not None, "the caller has checked that"
        session = self._sessions.setdefault(request.session_id, Session(request.session_id))
        try:
            async with asyncio.timeout(request.queue_timeout):
                await session.turn.acquire()
        except TimeoutError as error:
            raise QueueTimeoutError(
                f"an earlier program of the session still ran after {request.queue_timeout:g} s; this one was not run"
            ) from error
        try:
            if session.is_closed:
                raise SessionClosedError(f"the session '{session.id}' was deleted while this program waited")
            if session.timer is not None:
                session.timer.cancel()
            yield session
        finally:
            session.turn.release()
            if not session.is_closed:
                self._expire_later(session, request.session_idle_timeout)

    async def run(
        self, session: Session, request: RunRequest, on_waiting: Callable[[bool], None] | None = None
    ) -> SessionOutcome:
        """Run a program in the session's interpreter, or in a new one if there is none.

        Args:
            session: From `take_turn`.
            request: The program. Its memory limit and files only apply to a new interpreter.
            on_waiting: Called with True when the program begins to wait for something, with False when it continues.

        Raises:
            RequestError: The request has files, and the interpreter is not new.
            QueueFullError: Too many sessions are open.
            SessionClosedError: The session was deleted in the meantime.
            ServiceError: The interpreter did not start, or failed.
        """
        if session.interpreter is not None and not session.interpreter.is_alive:
            self._discard(session, "died between two programs")
        if session.interpreter is not None and session.interpreter.has_forged_message():
            self._discard(session, "was stopped because an earlier program wrote to the session's channel")
        if session.interpreter is not None and request.files:
            raise RequestError("files: a session takes files with its first program, and this one has begun")
        interpreter = session.interpreter or await self._open(session, request)
        session.num_programs += 1
        session.running = asyncio.create_task(_execute(interpreter, request, on_waiting))
        try:
            outcome = await session.running
        except ServiceError:
            self._discard(session, "failed")
            raise
        except asyncio.CancelledError:
            if session.is_closed:
                raise SessionClosedError(f"the session '{session.id}' was deleted while this program ran") from None
            self._discard(session, "was stopped because its client went away")
            raise
        finally:
            session.running = None
        earlier, session.lost = session.lost, None
        messages = [f"the session's interpreter {earlier}: this program ran in a new one"] if earlier else []
        num_programs = session.num_programs
        if not interpreter.is_alive and not session.is_closed:
            self._discard(session, _ending(outcome))
            messages.append(f"the session's interpreter {session.lost}: its state is lost")
        return SessionOutcome(outcome, num_programs, "; ".join(messages))

    async def delete(self, session_id: str) -> bool:
        """End a session and its running program; whether there was such a session."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return False
        session.is_closed = True
        if session.timer is not None:
            session.timer.cancel()
        if session.running is not None:
            session.running.cancel()
            await asyncio.wait({session.running})
        self._end(session)
        await self._wait_closed()
        return True

    async def close(self) -> None:
        """End all sessions."""
        for session_id in list(self._sessions):
            await self.delete(session_id)
        await self._wait_closed()

    async def _open(self, session: Session, request: RunRequest) -> InterpreterSession:
        if self.num_open >= _MAX_SESSIONS:
            raise QueueFullError(f"{_MAX_SESSIONS} sessions are open already")
        self.num_open += 1
        try:
            session.interpreter = await self._pool.open_session(
                memory_limit_mb=int(request.memory_limit_mb), files=request.files
            )
        finally:
            if session.interpreter is None:
                self.num_open -= 1
        session.num_programs = 0
        if session.is_closed:
            self._end(session)
            raise SessionClosedError(f"the session '{session.id}' was deleted while it began")
        return session.interpreter

    def _discard(self, session: Session, reason: str) -> None:
        if session.interpreter is not None:
            session.lost = reason
            self.num_lost += 1
            logger.info("sandbox: the interpreter of session '%s' %s", session.id, reason)
            self._end(session)

    def _end(self, session: Session) -> None:
        """Remove the interpreter from the session, and close it in the background."""
        interpreter, session.interpreter = session.interpreter, None
        if interpreter is not None:
            self.num_open -= 1
            task = asyncio.get_running_loop().create_task(interpreter.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _wait_closed(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing)

    def _expire_later(self, session: Session, idle_timeout: float) -> None:
        """Close the interpreter after `idle_timeout` seconds without a program, and forget the session later."""
        loop = asyncio.get_running_loop()

        def expire() -> None:
            if session.turn.locked():
                return
            if session.interpreter is None:
                self._sessions.pop(session.id, None)
                return
            self._discard(session, f"was closed after {idle_timeout:g} s without a program")
            session.timer = loop.call_later(_REMEMBER_S, expire)

        session.timer = loop.call_later(idle_timeout if session.interpreter else _REMEMBER_S, expire)


async def _execute(
    interpreter: InterpreterSession, request: RunRequest, on_waiting: Callable[[bool], None] | None
) -> RunOutcome:
    outcome = await interpreter.run(
        request.code, stdin=request.stdin, timeout=request.run_timeout, on_waiting=on_waiting
    )
    if not request.fetch_files or not interpreter.is_alive:
        return outcome
    files = await interpreter.fetch(request.fetch_files)
    if files is None:
        return dataclasses.replace(outcome, return_code=-signal.SIGKILL, stderr=outcome.stderr + FORGED)
    return dataclasses.replace(outcome, files=files)


def _ending(outcome: RunOutcome) -> str:
    code = outcome.return_code
    if outcome.timed_out or code is None:
        return "was stopped at the program's time limit"
    if code < 0:
        name = str(-code)
        with suppress(ValueError):
            name = f"{-code} ({signal.Signals(-code).name})"
        return f"was killed by signal {name}"
    return f"ended with exit code {code}"
