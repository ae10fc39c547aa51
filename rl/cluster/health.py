"""Waiting for remote work with a deadline, progress messages and the worker's own error."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from rl.errors import RolloutError, TurnwiseError, WorkerDiedError

logger = logging.getLogger(__name__)


_REMINDER_S = 30.0
"""Seconds between two log lines while waiting."""
_NUM_NAMES = 4
"""How many workers such a line names."""


def get_all(refs: list[ray.ObjectRef], *, what: str, timeout_s: float, names: Sequence[str] | None = None) -> list[Any]:
    """Fetch the results of calls that belong together.

    Fails as soon as one call fails: with tensor parallelism the others would wait for it forever.

    Args:
        refs: Running calls.
        what: Their task, for the log and the error: "the actor's update".
        timeout_s: Deadline for all of them, seconds.
        names: Each call's task, for its error; by default `what` and the call's number.

    Returns:
        Results in the order of `refs`.

    Raises:
        TurnwiseError: The worker's own, when it raised one.
        RolloutError: A worker died, or the deadline passed.
    """
    start, reminded, pending = time.monotonic(), time.monotonic(), list(refs)
    results: dict[ray.ObjectRef, Any] = {}
    if names is None:
        names = [what] if len(refs) == 1 else [f"{what}, worker {i}" for i in range(len(refs))]
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=1.0)
        for ref in done:
            results[ref] = result(ref, what=names[refs.index(ref)])
        now = time.monotonic()
        if pending and now - start > timeout_s:
            raise RolloutError(
                f"{what}: {len(pending)} of {len(refs)} workers have not answered within {timeout_s:.0f} s "
                f"({_some([names[refs.index(ref)] for ref in pending])}). Look at the end of their logs, in logs/ of "
                "the run directory, for the last thing they did."
            )
        if pending and now - reminded > _REMINDER_S:
            reminded = now
            waited_for = _some([names[refs.index(ref)] for ref in pending])
            logger.info(
                "waiting for %s: %d of %d workers, %.0f s (%s)", what, len(pending), len(refs), now - start, waited_for
            )
    return [results[ref] for ref in refs]


def result(ref: ray.ObjectRef, *, what: str) -> Any:
    """Fetch the result of a call that has ended.

    Raises:
        TurnwiseError: The worker's own, when it raised one.
        WorkerDiedError: The worker's process ended, or its engine's.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        told = told_to_user(error.cause)
        if told is not None:
            raise told from None
        if isinstance(error.cause, ObjectLostError):
            raise _lost(what) from error
        raise
    except ObjectLostError as error:
        raise _lost(what) from error
    except (RayActorError, OutOfMemoryError) as error:
        raise WorkerDiedError(
            f"{what}: the worker process died ({_reason(error)}). Look at the run directory's logs."
        ) from None


def _lost(what: str) -> RolloutError:
    return RolloutError(
        f"{what}: trajectories are gone, because a machine or Ray's daemon on it ended. Resume the run."
    )


def told_to_user(cause: BaseException) -> TurnwiseError | None:
    """The error meant for the user, also if it is inside an exception group."""
    if isinstance(cause, TurnwiseError):
        return cause
    if isinstance(cause, BaseExceptionGroup):
        return next((told for inner in cause.exceptions if (told := told_to_user(inner))), None)
    return None


def _some(names: list[str]) -> str:
    """The first few names, joined by commas."""
    return ", ".join([*names[:_NUM_NAMES], *(["..."] if len(names) > _NUM_NAMES else [])])


def _reason(error: RayError) -> str:
    """The last line of Ray's long message, which tells why the worker died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rpartition("Worker exit detail: ")[2].rstrip(".") if lines else "no reason given"
