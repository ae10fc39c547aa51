"""A warning that is logged at most once a minute, with the number of cases."""

from __future__ import annotations

import logging
import time

_PAUSE_S = 60.0


class ThrottledWarning:
    """Counts cases, and logs their number and the latest one."""

    def __init__(self, logger: logging.Logger, text: str) -> None:
        """Start at zero.

        Args:
            logger: The logger to use.
            text: A format string for the number of cases and the latest case.
        """
        self._logger, self._text = logger, text
        self._num_pending = 0
        self._next = 0.0

    def count(self, case: str) -> None:
        """Count a case, and log unless that happened within the last minute."""
        self._num_pending += 1
        if time.monotonic() >= self._next:
            self._logger.warning(self._text, self._num_pending, case)
            self._num_pending, self._next = 0, time.monotonic() + _PAUSE_S
