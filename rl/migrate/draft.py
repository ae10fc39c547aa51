"""What a conversion writes, and what it says about every key of the file that it read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rl.config.check import check_section
from rl.config.keys import key_paths, value_at
from rl.config.kinds import Choice
from rl.config.migration import MIGRATIONS, Missing
from rl.config.no_effect import no_effect_problems
from rl.config.schema import Config

_ASKED: dict[Missing, tuple[str, Any, str]] = {
    Missing.LORA: ("megatron_training.lora_r", 8, "Delete this line to train all parameters."),
    Missing.EXPERTS: ("generate_config.enable_expert_parallel", True, "Choose a dense model, then delete this line."),
    Missing.CONTEXT: (
        "actor_config.context_parallel_size",
        2,
        "Delete this line; where memory is short, raise tensor_model_parallel_size.",
    ),
    Missing.CRITIC: (
        "rl_config.adv_estimator",
        "gae",
        "Choose an estimator without a critic: group_norm, rloo, reinforce_plus_plus.",
    ),
    Missing.DPO: ("megatron_training.stage", "dpo", "This project trains by rollouts, not on pairs."),
    Missing.IMAGES: ("rl_config.is_multimodal", True, "Delete this line to train on the texts alone."),
    Missing.REWARD_MODEL: ("reward_config.model", "", "Name reward functions, then delete this section."),
}
"""For each missing part the key, with a value, that `rl validate` refuses, and what to do."""


@dataclass(slots=True)
class Line:
    """One key of the written file."""

    value: Any
    comment: str = ""


@dataclass(slots=True)
class Draft:
    """A configuration in the making. Every key of the source gets exactly one answer."""

    framework: str
    given: dict[str, Any]
    """Keys of the source by their dotted paths."""
    root: type = Config
    """`Config`, or `DatasetConfig` for the description of a dataset."""
    lines: dict[str, Line] = field(default_factory=dict)
    """Keys here by their dotted paths."""
    refused: dict[str, Line] = field(default_factory=dict)
    """Keys that stand for missing parts: `rl validate` refuses them until the user decides."""
    model: str = ""
    """File of configs/model with the architecture, without `.yaml`."""
    kept: dict[str, str] = field(default_factory=dict)
    """Keys with the same name here, and what to know about them."""
    renamed: dict[str, list[str]] = field(default_factory=dict)
    """Keys here that took over another key, by that key."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys without a counterpart that change nothing, and why."""
    by_hand: dict[str, str] = field(default_factory=dict)
    """Keys that could not be converted, and what to do."""
    missing: dict[Missing, list[str]] = field(default_factory=dict)
    """Parts that do not exist here, and the keys that ask for them."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key of the source, or the source's default for null and for a key that it lacks.

        A value of another kind than the default is asked about, and the default taken.
        """
        value = self.given.get(name)
        kind = _kind(default)
        if value is None or default is None or _kind(value) == kind:
            return default if value is None else value
        self.ask(name, f"Must be {kind}; {default!r} was taken.")
        return default

    def any_kind(self, name: str, default: Any) -> Any:
        """The value of a key that may be of several kinds, or the source's default."""
        value = self.given.get(name)
        return default if value is None else value

    def number(self, name: str, default: Any = None, least: float | None = None) -> Any:
        """The value of a key that counts something.

        One that is no number, or less than `least`, is asked about, and the default taken.
        """
        value = self.get(name) if default is None else self.get(name, default)
        if value is None or (_kind(value) == "a number" and (least is None or value >= least)):
            return value
        self.ask(name, f"Must be a number{'' if least is None else f' of at least {least:g}'}; {default} was taken.")
        return default

    def put(self, target: str, value: Any, *sources: str, comment: str = "") -> None:
        """Write a key here.

        Without any of the sources in the file the value is the other framework's default: it is written only where it
        differs from the default here, so that the run means the same.

        Args:
            target: Dotted path here.
            value: In the units of here.
            sources: Keys of the source that it was worked out from.
            comment: What changed; shown beside the key.
        """
        found = [name for name in sources if name in self.given]
        if not found:
            if same_value(value, value_at(_defaults(self.root), target)):
                return
            comment = comment or f"the default of {self.framework}"
        self.lines[target] = Line(value, comment)
        for name in found:
            self.dropped.pop(name, None)
            if name == target:
                self.kept[name] = comment
            else:
                self.kept.pop(name, None)
                self.renamed.setdefault(name, []).append(target)

    def copy(self, name: str, target: str, default: Any, comment: str = "") -> Any:
        """Write a key with the same meaning and unit here, and return its value."""
        value = self.get(name, default)
        self.put(target, value, name, comment=comment)
        return value

    def drop(self, name: str, reason: str) -> None:
        """Answer a key that changes nothing here, unless it has an answer or is not given."""
        if name in self.given and not self._is_answered(name):
            self.dropped[name] = reason

    def ask(self, name: str, advice: str) -> None:
        """Answer a key that the user must look at, even if the source does not have it."""
        got = f" Got {self.given[name]!r:.60}." if name in self.given else ""
        self.by_hand[name] = f"{advice}{got}"

    def ask_if_set(self, name: str, advice: str) -> None:
        """Ask about a key that is set; drop one that is false, null or empty."""
        if self.get(name) and not self._is_answered(name):
            self.ask(name, advice)
        self.drop(name, "It is not set.")

    def lack(self, part: Missing, *names: str, value: Any = None) -> None:
        """Answer keys that ask for a missing part, and write a line that `rl validate` refuses."""
        told = self.missing.setdefault(part, [])
        told.extend(name for name in names if name in self.given and name not in told)
        key, example, advice = _ASKED[part]
        if key not in self.refused or value is not None:
            self.refused[key] = Line(example if value is None else value, f"missing here: {part}. {advice}")
            self.lines.pop(key, None)

    def note(self, target: str, comment: str) -> None:
        """Add a comment to a line that is written."""
        line = self.lines.get(target)
        if line is not None:
            line.comment = comment
            if target in self.kept:
                self.kept[target] = comment

    def value(self, target: str) -> Any:
        """The value that the written file gives a key here, the default included."""
        return self.lines[target].value if target in self.lines else value_at(_defaults(self.root), target)

    def unanswered(self) -> list[str]:
        """Keys of the source without an answer yet."""
        return [name for name in self.given if not self._is_answered(name)]

    def _is_answered(self, name: str) -> bool:
        told = self.kept.keys() | self.renamed.keys() | self.dropped.keys() | self.by_hand.keys()
        return name in told or any(name in names for names in self.missing.values())

    def drop_known(self, reasons: Mapping[str, str]) -> None:
        """Answer the remaining keys from a table of names; an entry that ends in a dot answers all keys below it."""
        for name in self.unanswered():
            parts = name.split(".")
            above = [".".join(parts[:end]) + "." for end in range(len(parts), 0, -1)]
            reason = next((reasons[key] for key in (name, *above) if key in reasons), None)
            if reason is not None:
                self.drop(name, reason)

    def finish(self) -> None:
        """Answer what is left as unknown, and take out values that no key here can have."""
        for name in self.unanswered():
            self.ask(name, f"Unknown key of {self.framework}; it has no effect on the written file.")
        config: Any
        config, problems = check_section(self.root, nested({key: line.value for key, line in self.lines.items()}))
        for problem in problems:
            if problem.key in self.lines:
                for name in self._take_out(problem.key) or [problem.key]:
                    self.ask(name, f"{problem.text} Left out.")
        if isinstance(config, Config):
            for found in no_effect_problems(config, frozenset(self.lines)):
                key, _, reason = found.text.partition(": ")
                for name in self._take_out(key):
                    self.drop(name, f"It {reason}")

    def _take_out(self, target: str) -> list[str]:
        """Remove a line; returns the keys of the source that have no answer any more."""
        del self.lines[target]
        names = [target, *(name for name, targets in self.renamed.items() if target in targets)]
        for name in names:
            self.kept.pop(name, None)
            others = [other for other in self.renamed.pop(name, []) if other != target]
            if others:
                self.renamed[name] = others
        return [name for name in names if name in self.given and not self._is_answered(name)]


def answer_foreign_key(draft: Draft, name: str, key: str) -> bool:
    """Answer a key of the source by the table of keys that do not exist here.

    Args:
        draft: Changed.
        name: The key in the source.
        key: Its path in `rl.config.migration.MIGRATIONS`, or below one.

    Returns:
        Whether the table has it.
    """
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        entry = MIGRATIONS[draft.root].get(".".join(parts[:end]))
        if entry is None:
            continue
        value = draft.given[name]
        if entry.accepted is None:
            draft.drop(name, entry.reason)
        elif end == len(parts) and entry.accepts(value):
            draft.drop(name, "Its value is what happens here.")
        elif entry.missing is not None:
            draft.lack(entry.missing, name)
        else:
            draft.ask(name, entry.advice)
        return True
    return False


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a key are the same, members of enumerations being their text."""
    return _plain(one) == _plain(other)


def flat(tree: Mapping[str, Any], leaves: Iterable[str] = key_paths(Config), prefix: str = "") -> dict[str, Any]:
    """The keys of nested mappings by their dotted paths.

    Args:
        tree: Nested mappings.
        leaves: Paths whose value is a mapping of its own.
        prefix: Path of the mapping, with a dot at its end.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and path not in leaves:
            found |= flat(value, leaves, f"{path}.")
        else:
            found[path] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings from dotted paths."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *sections, key = path.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[key] = value
    return tree


def _kind(value: Any) -> str:
    """The kind of a value, in words."""
    if isinstance(value, bool):
        return "true or false"
    kinds: dict[type, str] = {int: "a number", float: "a number", str: "text", list: "a list", dict: "a section"}
    return kinds.get(type(value), type(value).__name__)


@cache
def _defaults(root: type) -> Any:
    return root()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Choice) else value
