"""What another process could change about this one: limits, priority, processors. Standard library only."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping

_LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))


def read_process_state() -> dict[str, object]:
    """This process's limits, priority and processors, by name."""
    state: dict[str, object] = {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}
    state["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)
    state["scheduler"] = os.sched_getscheduler(0)
    state["processors"] = os.sched_getaffinity(0)
    return state


def find_changes(before: Mapping[str, object]) -> list[str]:
    """Describe what has changed since `read_process_state` returned `before`; empty if nothing has."""
    now = read_process_state()
    return [f"{name} was {value} and is {now[name]}" for name, value in before.items() if now[name] != value]
