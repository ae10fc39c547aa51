"""A strict reader of Chrome trace events."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]


@dataclass
class Trace:
    """What a trace shows: names of processes with their numbers and threads, and the complete events by thread."""

    processes: dict[str, int]
    threads: dict[str, list[str]]
    events: dict[tuple[str, str], list[Event]]

    def seconds(self, process: str, name: str) -> float:
        """Summed durations of the events with a name."""
        return (
            sum(e["dur"] for (who, _), own in self.events.items() if who == process for e in own if e["name"] == name)
            / 1e6
        )


def check_trace(events: list[Event]) -> Trace:
    """Read a trace; fails unless every thread is named and its spans lie within one another or do not overlap."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len(set(processes.values())) == len(processes), "two processes have one name"
    spans: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        assert event["ph"] in ("X", "M", "C"), event
        if event["ph"] == "X":
            assert all(isinstance(event[key], int) for key in ("ts", "dur", "pid", "tid")), event
            spans[processes[event["pid"]], names[event["pid"], event["tid"]]].append(event)
    for thread, own in spans.items():
        _check_thread(thread, own)
    threads = {
        name: [thread for (pid, _), thread in names.items() if pid == number] for number, name in processes.items()
    }
    return Trace({name: pid for pid, name in processes.items()}, threads, dict(spans))


def _check_thread(thread: tuple[str, str], events: list[Event]) -> None:
    open_ends: list[int] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        start, end = event["ts"], event["ts"] + event["dur"]
        assert start >= 0 and end >= start, f"{thread}: {event} ends before it begins"
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1], f"{thread}: {event} crosses the end of another"
        open_ends.append(end)
