"""A warning about what may happen often: logged once in a while, with how often it was."""

from __future__ import annotations

import logging
import time

_PAUSE_S = 60.0


class RareWarning:
    """Counts, and tells the count and the latest case."""

    def __init__(self, logger: logging.Logger, text: str) -> None:
        """Begin with none.

        Args:
            logger: Where to.
            text: With places for the count and for the case.
        """
        self._logger, self._text = logger, text
        self._num_untold = 0
        self._next = 0.0

    def count(self, case: str) -> None:
        """Count a case, and warn unless that was done a short while ago.

        Args:
            case: What it was about.
        """
        self._num_untold += 1
        if time.monotonic() >= self._next:
            self._logger.warning(self._text, self._num_untold, case)
            self._num_untold, self._next = 0, time.monotonic() + _PAUSE_S
