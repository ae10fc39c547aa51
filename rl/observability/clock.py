"""The wall clock of spans: seconds since 1970 that never jump, so that the spans of several processes line up."""

from __future__ import annotations

import time

_READINGS = 5


def _offset_s() -> float:
    """Seconds from the monotonic clock to the wall clock.

    An interruption between the two readings makes the difference smaller, so the largest of several is the best.
    """
    return max(time.time() - time.monotonic() for _ in range(_READINGS))


_OFFSET_S = _offset_s()


def wall_time(monotonic_s: float | None = None) -> float:
    """Seconds since 1970, as the wall clock stood when this process started, plus the monotonic seconds since then.

    All processes of a machine share the monotonic clock, so they agree as long as nobody set the wall clock between
    their starts. Machines differ as far as their clocks do.

    Args:
        monotonic_s: A reading of `time.monotonic`; by default now.
    """
    return _OFFSET_S + (time.monotonic() if monotonic_s is None else monotonic_s)
