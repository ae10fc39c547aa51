"""Checks before a run that the rewards can read the rows; otherwise no answer could be correct."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rl.errors import RewardError
from rl.rewards import rules, search
from rl.rewards.answers import normalize_answer
from rl.rewards.conventions import missing_column
from rl.rewards.registry import Reward
from rl.types import Prompt


def row_problems(rewards: Sequence[Reward], prompts: Sequence[Prompt], path: Path) -> Iterator[str]:
    """Find rows that a reward cannot read.

    Args:
        rewards: Rewards of the configuration. Of those that users wrote, only TRL's are checked, for their columns.
        prompts: Rows loaded from `path`.
        path: File name for messages.

    Yields:
        One line per reward with bad rows: the first one, and their number.
    """
    for reward in rewards:
        check = _CHECKS.get(reward.function) or partial(_check_columns, reward)
        found = [(prompt, problem) for prompt in prompts if (problem := _problem(check, prompt)) is not None]
        if found:
            first, problem = found[0]
            others = f" {len(found)} of {len(prompts)} rows are like that." if len(found) > 1 else ""
            number = first.id.rpartition("-")[2]
            yield f"{path}, row {number}: {reward.name}: {problem}{others}"


def _problem(check: Callable[[Prompt], Any], prompt: Prompt) -> str | None:
    try:
        check(prompt)
    except RewardError as error:
        return str(error)
    return None


def _check_math(prompt: Prompt) -> None:
    _refuse_empty([normalize_answer(truth) for truth in rules.math_answers(prompt)], prompt)


def _check_search(prompt: Prompt) -> None:
    truths, _ = search.read_row(prompt)
    _refuse_empty([search.normalize_text(truth) for truth in truths], prompt)


def _check_columns(reward: Reward, prompt: Prompt) -> None:
    column = missing_column(reward.name, reward.function, reward.kwargs, prompt)
    if column is not None:
        columns = ", ".join(("ground_truth", "data_source", *prompt.extra))
        raise RewardError(
            f"the function needs the column '{column}', got {columns}. Keep it with dataset_additional_keys of "
            "`rl preprocess`, or give a value in rl_config.verifier_kwargs."
        )


def _refuse_empty(answers: Sequence[str], prompt: Prompt) -> None:
    if not any(answers):
        raise RewardError(
            f"the ground truth is empty after normalization, got {prompt.ground_truth!r:.80}. Write the answer, "
            "or remove the row."
        )


_CHECKS: dict[Callable[..., Any], Callable[[Prompt], Any]] = {
    **dict.fromkeys((rules.base_acc, rules.gsm8k_boxed, rules.math_acc, rules.retool_reward), _check_math),
    **dict.fromkeys((search.search_em, search.search_f1), _check_search),
    rules.reasoning_gym: rules.task_of,
}
