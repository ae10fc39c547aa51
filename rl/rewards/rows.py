"""Finds rows that a reward cannot read, before a run: no answer to them could be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rl.errors import RewardError
from rl.rewards import rules, search
from rl.rewards.answers import normalize_answer
from rl.rewards.registry import Reward
from rl.types import Prompt


def row_problems(rewards: Sequence[Reward], prompts: Sequence[Prompt], path: Path) -> Iterator[str]:
    """What is wrong with the rows of a file, for each reward that has something to read in a row.

    Args:
        rewards: Of the configuration. A reward of one's own reads what it likes, and is not asked.
        prompts: As loaded from `path`.
        path: For the message.

    Yields:
        A line for each reward: its first bad row, and how many there are.
    """
    for reward in rewards:
        check = _CHECKS.get(reward.function)
        if check is None:
            continue
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


def _refuse_empty(answers: Sequence[str], prompt: Prompt) -> None:
    if not any(answers):
        raise RewardError(
            f"nothing is left to compare with of the ground truth, got {prompt.ground_truth!r:.80}. Write the answer, "
            "or leave the row out."
        )


_CHECKS: dict[Callable[..., Any], Callable[[Prompt], Any]] = {
    **dict.fromkeys((rules.base_acc, rules.gsm8k_boxed, rules.math_acc, rules.retool_reward), _check_math),
    **dict.fromkeys((search.search_em, search.search_f1), _check_search),
    rules.reasoning_gym: rules.task_of,
}
