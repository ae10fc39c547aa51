"""Keys of single trackers, MindSpeed-RL's and this project's earlier ones, taken over into those for all trackers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rl.config.kinds import TrackerName
from rl.config.problems import Problem, warning
from rl.config.schema import MegatronTraining

_SWITCHES = {
    "use_tensorboard": TrackerName.TENSORBOARD,
    "use_wandb": TrackerName.WANDB,
    "use_swanlab": TrackerName.SWANLAB,
}
_TEXTS = {
    "wandb_project": "tracker_project",
    "swanlab_project": "tracker_project",
    "wandb_exp_name": "tracker_run_name",
    "swanlab_exp_name": "tracker_run_name",
}
TEXTS = {f"rl_config.{key}": f"megatron_training.{there}" for key, there in _TEXTS.items()}
"""Keys of text by dotted path, with those that take their place."""
_MODE = "swanlab_mode"
TAKEN_OVER = {
    **{f"rl_config.{key}": "megatron_training.trackers" for key in _SWITCHES},
    **TEXTS,
    f"rl_config.{_MODE}": "megatron_training.trackers_offline",
}
"""All these keys by dotted path, with those that take their place."""
_OFFLINE, _DISABLED = ("local", "offline"), "disabled"
_MODES = ("", "cloud", "online", _DISABLED, *_OFFLINE)


def take_over_trackers(tree: dict[str, Any], overridden: Collection[str] = ()) -> list[Problem]:
    """Move the switches, projects, names and mode of `rl_config` to `megatron_training`.

    Values of a wrong type stay where they are, and the check of the keys reports them.

    Args:
        tree: The composed mapping; changed.
        overridden: Dotted paths of the keys that the command line sets: they come before those of files.

    Returns:
        A warning for each key that was taken over or left out.
    """
    old = tree.get("rl_config")
    if not isinstance(old, dict) or not isinstance(tree.setdefault("megatron_training", {}), dict):
        return []
    new = tree["megatron_training"]
    has_list = "trackers" in new

    def wins(key: str, there: str) -> bool:
        return f"rl_config.{key}" in overridden and f"megatron_training.{there}" not in overridden

    problems = [
        _switch(old, new, key, name, is_left_out=has_list and not wins(key, "trackers"))
        for key, name in _SWITCHES.items()
        if _is_bool(old.get(key))
    ]
    for key, there in _TEXTS.items():
        if isinstance(old.get(key), str):
            problems.append(_text(old, new, key, there, is_first=wins(key, there)))
    if old.get(_MODE) in _MODES:
        problems.append(_mode(old, new, is_first=wins(_MODE, "trackers_offline")))
    return problems


def _switch(old: dict[str, Any], new: dict[str, Any], key: str, name: TrackerName, *, is_left_out: bool) -> Problem:
    value = old.pop(key)
    trackers = new.get("trackers", [tracker.value for tracker in MegatronTraining().trackers])
    if is_left_out or not isinstance(trackers, list):
        return _warn(key, value, "left out beside megatron_training.trackers", "Remove it")
    new["trackers"] = trackers
    if value and name.value not in trackers:
        trackers.append(name.value)
    if not value and name.value in trackers:
        trackers.remove(name.value)
    return _warn(key, value, "taken over", f"Here it is megatron_training.trackers, a list: {trackers}")


def _text(old: dict[str, Any], new: dict[str, Any], key: str, there: str, *, is_first: bool) -> Problem:
    value = old.pop(key)
    place = f"megatron_training.{there}"
    if not value or (not is_first and new.get(there, value) != value):
        return _warn(key, value, "left out", f"Here it is {place}, one for all trackers")
    new[there] = value
    return _warn(key, value, "taken over", f"Here it is {place}, one for all trackers")


def _mode(old: dict[str, Any], new: dict[str, Any], *, is_first: bool) -> Problem:
    value = old.pop(_MODE)
    if value in _OFFLINE:
        new["trackers_offline"] = True if is_first else new.get("trackers_offline", True)
        return _warn(_MODE, value, "taken over", "Here it is megatron_training.trackers_offline=true")
    if value == _DISABLED and "swanlab" in new.get("trackers", ()):
        new["trackers"].remove("swanlab")
    return _warn(_MODE, value, "taken over", "Here megatron_training.trackers and trackers_offline say it")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _warn(key: str, value: Any, what: str, advice: str) -> Problem:
    return warning(f"rl_config.{key}: got {value!r:.60}, {what}. {advice}.")
