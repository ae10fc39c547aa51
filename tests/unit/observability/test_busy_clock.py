from __future__ import annotations

import pytest

from rl.observability import busy_clock
from rl.observability.busy_clock import BusyClock


def test_busy_clock_counts_overlapping_blocks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(busy_clock.time, "monotonic", lambda: now[0])
    clock = BusyClock()
    with clock:  # 0 to 5, another from 2 to 3 within
        now[0] = 2.0
        with clock:
            now[0] = 3.0
        now[0] = 5.0
    now[0] = 8.0
    with pytest.raises(KeyError), clock:  # 8 to 9
        now[0] = 9.0
        raise KeyError
    now[0] = 10.0
    assert clock.restart() == 6.0
    assert clock.restart() == 0.0


def test_busy_clock_restarts_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(busy_clock.time, "monotonic", lambda: now[0])
    clock = BusyClock()
    with clock:
        now[0] = 2.0
        assert clock.restart() == 2.0
        now[0] = 5.0
    assert clock.restart() == 3.0
