"""The index of trajectories: what the page's list and filters need to know about each, in columns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rl.observability.accuracy import is_correct

_PREVIEW_CHARACTERS, _ENDING_CHARACTERS = 160, 64
_LAST_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>\s*$|</s>\s*$")
_COLUMNS = (
    "sample", "task", "set", "stop", "exclusion", "score", "advantage", "turns", "calls", "sampled", "response",
    "wall_s", "generate_s", "tool_s",
    "is_correct",
)  # fmt: skip


@dataclass(slots=True)
class RowIndex:
    """Columns with one entry for each trajectory, in the order of the files and of the rows in a file.

    Texts that repeat (task, stop reason, evaluation set) are numbers of entries of `names`.
    """

    files: list[dict[str, Any]] = field(default_factory=list)
    """`name` (such as step_000012), and its `first` row and `count`."""
    names: list[str] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Consecutive trajectories of one prompt: `prompt` (its id), `preview` (the start of its last message), `first`,
    `count`."""
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    rewards: dict[str, list[float | None]] = field(default_factory=dict)
    """By name; null where a trajectory does not have it."""
    endings: list[str] = field(default_factory=list)
    """The end of each trajectory's last turn, which often is its answer."""
    tool_errors: list[list[int]] = field(default_factory=list)
    """For each trajectory, the statuses other than `ok`, as `names`."""
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Number of trajectories."""
        return len(self.tool_errors)

    def add_file(self, name: str) -> None:
        """Begin a file; the trajectories that follow are its own."""
        self.files.append({"name": name, "first": self.num_rows, "count": 0})

    def add(self, record: dict[str, Any]) -> None:
        """Add the next trajectory of the file.

        Args:
            record: From `rl.observability.trajectories.to_record`.
        """
        row = self.num_rows
        prompt, _, sample = record["id"].rpartition("/")
        is_new_file = self.files[-1]["count"] == 0
        if is_new_file or self.groups[-1]["prompt"] != prompt:
            self.groups.append({"prompt": prompt, "preview": _preview(record), "first": row, "count": 0})
        self.groups[-1]["count"] += 1
        self.files[-1]["count"] += 1
        turns = record["turns"]
        results = [result for turn in turns for result in turn["results"]]
        values = {
            "sample": int(sample),
            "task": self._number(record["data_source"]),
            "set": self._number(record.get("evaluation_set") or ""),
            "stop": self._number(record["stop_reason"]),
            "exclusion": self._number(record.get("exclusion") or ""),
            "score": _rounded(record["score"]),
            "advantage": _rounded(record.get("advantage")),
            "turns": len(turns),
            "calls": sum(len(turn["calls"]) for turn in turns),
            "sampled": record["num_sampled"],
            "response": record["response_length"],
            "wall_s": _rounded(record["wall_s"]),
            "generate_s": _rounded(sum(turn["generate_s"] for turn in turns)),
            "tool_s": _rounded(sum(turn["tool_s"] for turn in turns)),
            "is_correct": int(is_correct(record["rewards"], record.get("reward_error"))),
        }
        for name, column in self.columns.items():
            column.append(values[name])
        for name, value in record["rewards"].items():
            if name not in self.rewards:
                self.rewards[name] = [None] * row
            self.rewards[name].append(_rounded(value))
        self.endings.append(_ending(turns[-1]["text"]) if turns else "")
        self.tool_errors.append(sorted({self._number(r["status"]) for r in results if r["status"] != "ok"}))
        for column in self.rewards.values():
            if len(column) < self.num_rows:
                column.append(None)

    def to_json(self) -> dict[str, Any]:
        """The index as plain values."""
        names = ("files", "names", "groups", "columns", "rewards", "endings", "tool_errors")
        return {"num_rows": self.num_rows} | {name: getattr(self, name) for name in names}

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]


def _preview(record: dict[str, Any]) -> str:
    """The start of the prompt's last message, on one line."""
    content = record["messages"][-1].get("content") if record["messages"] else ""
    return " ".join(str(content or "")[: 2 * _PREVIEW_CHARACTERS].split())[:_PREVIEW_CHARACTERS]


def _ending(text: str) -> str:
    """The end of a turn on one line, without the template's token that ends it."""
    return " ".join(_LAST_TOKEN.sub("", text[-3 * _ENDING_CHARACTERS :]).split())[-_ENDING_CHARACTERS:]


def _rounded(value: float | None) -> float | None:
    """Six significant digits, since the list shows four; NaN and infinity become null, because JSON has none."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.6g}")
