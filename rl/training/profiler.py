"""Torch's profiler around the passes of one step of a rank."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

logger = logging.getLogger(__name__)

_LONGEST_S = 60.0
"""Seconds after which no further pass is profiled. A second of a CPU rank takes about 40 MB of memory."""
_NUM_OPERATORS = 40
"""Rows of the table."""


class RankProfiler:
    """Profiles a rank from its creation to `write`, or until a pass ends after a minute."""

    def __init__(self) -> None:
        on_cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        self._sort_by = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
        self._profile = profile(activities=activities)
        self._start = time.monotonic()
        self._is_running = True
        self._profile.start()

    def end_pass(self) -> None:
        """Stop if enough is profiled; to be called after each pass."""
        if time.monotonic() - self._start > _LONGEST_S:
            self._stop()

    def write(self, folder: Path, name: str) -> None:
        """Stop, and write `NAME.json.gz`, a trace for Perfetto, and `NAME.txt`, a table of the operators.

        Raises:
            OSError: A file could not be written.
        """
        self._stop()
        table = self._profile.key_averages().table(
            sort_by=self._sort_by, row_limit=_NUM_OPERATORS, max_name_column_width=80
        )
        (folder / f"{name}.txt").write_text(table + "\n", encoding="utf-8")
        self._profile.export_chrome_trace(str(folder / f"{name}.json.gz"))

    def _stop(self) -> None:
        if self._is_running:
            self._is_running = False
            self._profile.stop()
