"""SIGTERM and SIGUSR1 ask a run to save after its step and to end, as schedulers do before they take a machine away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SAVING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers the first signal; a SIGTERM that follows one interrupts at once, as Ctrl-C does."""

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the signal that asked for the end; None while the run is to go on."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals during a block, and restore their earlier handlers."""
        previous = {number: signal.signal(number, self._receive) for number in SAVING_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, signum: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = signal.Signals(signum).name
            text = f"{self.signal}: the run saves after this step and ends. A further SIGTERM ends it at once.\n"
            os.write(2, text.encode())  # a handler may interrupt any stream, so it uses none
        elif signum == signal.SIGTERM:
            raise KeyboardInterrupt
