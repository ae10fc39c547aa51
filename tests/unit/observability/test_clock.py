from __future__ import annotations

import subprocess
import sys
import time

import pytest

from rl.observability.clock import wall_time

SCRIPT = "import time; from rl.observability.clock import wall_time; print(repr(wall_time(1000.0)))"


def test_wall_time_is_the_wall_clock_and_runs_with_the_monotonic_one() -> None:
    assert wall_time() == pytest.approx(time.time(), abs=0.01)
    assert wall_time(1003.5) - wall_time(1000.0) == pytest.approx(3.5, abs=1e-6)


def test_processes_of_a_machine_agree_to_less_than_a_millisecond() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) == pytest.approx(wall_time(1000.0), abs=0.001)
