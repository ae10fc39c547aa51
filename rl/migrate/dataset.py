"""Converts the YAML of MindSpeed-RL's preprocessing into one for `rl preprocess`."""

from __future__ import annotations

from typing import Any

from rl.chat.templates import TEMPLATES
from rl.config.keys import key_paths
from rl.config.migration import DATASET_MIGRATION, Missing
from rl.config.schema import DatasetConfig
from rl.migrate.draft import Draft, answer_foreign_key
from rl.migrate.mindspeed import FRAMEWORK

_PAIRWISE = "Pairwise"
_ANSWERS = {"Math17k": "reward_model.ground_truth"}
"""Where handlers find the answer, by a part of their name; the others read the column that `map_keys` names."""


def convert_dataset(tree: dict[str, Any]) -> Draft:
    """Convert the description of a dataset.

    Args:
        tree: Its keys.
    """
    draft = Draft(FRAMEWORK, dict(tree), DatasetConfig)
    known = set(key_paths(DatasetConfig))
    for name, value in tree.items():
        entry = DATASET_MIGRATION.get(name)
        if name in known:
            draft.put(name, value, name)
        elif entry is not None and entry.moved_to:
            draft.put(entry.moved_to, value, name)
        elif name != "handler_name":
            answer_foreign_key(draft, name, name)
    handler = str(draft.get("handler_name", ""))
    if _PAIRWISE in handler:
        draft.missing[Missing.DPO] = ["handler_name"]
    else:
        answer_foreign_key(draft, "handler_name", "handler_name")
    _columns(draft, handler)
    _template(draft)
    draft.finish()
    return draft


def _columns(draft: Draft, handler: str) -> None:
    columns = draft.get("map_keys")
    place = next((place for part, place in _ANSWERS.items() if part in handler), None)
    if isinstance(columns, dict) and place is not None and columns.get("response") == place.split(".")[0]:
        comment = f"the answer within the column, which {handler} reads there"
        draft.put("map_keys", columns | {"response": place}, "map_keys", comment=comment)
    if draft.get("dataset_additional_keys") == ["labels"]:
        draft.lines.pop("dataset_additional_keys", None)
        draft.kept.pop("dataset_additional_keys", None)
        draft.drop("dataset_additional_keys", "Every row has its ground truth.")


def _template(draft: Draft) -> None:
    name = draft.get("prompt_type", "empty")
    if name in TEMPLATES:
        draft.note(
            "prompt_type", f"set rl_config.prompt_type: {name} for the run too; rows are rendered when it starts"
        )
        return
    draft.lines.pop("prompt_type", None)
    draft.kept.pop("prompt_type", None)
    draft.ask("prompt_type", f"No such template here; there is {', '.join(TEMPLATES)}. `empty` is the tokenizer's own.")
