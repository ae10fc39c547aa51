"""Rewards for question answering with search: exact match and F1 as in SQuAD, and recall of gold documents."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

from rl.errors import RewardError
from rl.rewards.answers import marked_answer, normalize_unicode
from rl.rewards.truths import accepted_answers
from rl.types import Prompt, Trajectory

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TITLE = re.compile(r"^Doc \d+ \(Title: (.*)\)$", re.MULTILINE)


def search_em(trajectory: Trajectory) -> dict[str, float]:
    r"""Return 1 if the final answer equals an accepted answer after normalization.

    Args:
        trajectory: The answer is the last `\boxed{...}` or `<answer>...</answer>` of the last turn.
            `rl.rewards.truths.accepted_answers` reads `prompt.ground_truth`. The optional `prompt.extra["gold_titles"]`
            has the titles of the documents with the answer.

    Returns:
        `score` (1.0 or 0.0), `f1`, and `recall` if the row has gold titles.

    Raises:
        RewardError: The ground truth or the titles cannot be read.

    Source: Search-R1, arXiv:2503.09516, for the reward.
    """
    metrics = _measure(trajectory)
    return {"score": metrics.pop("em"), **metrics}


def search_f1(trajectory: Trajectory) -> dict[str, float]:
    """Return the best word F1 of the final answer and an accepted answer.

    Args:
        trajectory: As for `search_em`.

    Returns:
        `score` (0.0 to 1.0), `em`, and `recall` if the row has gold titles.

    Raises:
        RewardError: The ground truth or the titles cannot be read.
    """
    metrics = _measure(trajectory)
    return {"score": metrics.pop("f1"), **metrics}


def normalize_text(text: str) -> str:
    """Lowercase, remove punctuation and the articles a, an, the, and collapse whitespace.

    Source: SQuAD's evaluation script, arXiv:1606.05250. That script handles ASCII only; this function also normalizes
    Unicode and removes the punctuation of all scripts.
    """
    text = normalize_unicode(normalize_unicode(text).casefold())
    kept = (c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", "".join(kept)).split())


def word_f1(answer: str, truth: str) -> float:
    """Word F1 of two texts after normalization: 2 P R / (P + R), with repeated words counted; 0 without common words.

    Source: SQuAD's evaluation script, arXiv:1606.05250.
    """
    given, wanted = normalize_text(answer).split(), normalize_text(truth).split()
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def gold_recall(trajectory: Trajectory, titles: Iterable[str]) -> float:
    """Fraction of the titles that appear in the tool results; 1 without titles."""
    results = (result.text for turn in trajectory.turns for result in turn.results)
    shown = {normalize_text(title) for text in results for title in _TITLE.findall(text)}
    wanted = {normalize_text(title) for title in titles}
    return len(wanted & shown) / len(wanted) if wanted else 1.0


def read_row(prompt: Prompt) -> tuple[list[str], list[str] | None]:
    """Read the accepted answers of a row and its gold titles (None if it has none).

    Raises:
        RewardError: Answers or titles cannot be read.
    """
    truths, titles = accepted_answers(prompt.ground_truth), prompt.extra.get("gold_titles")
    titles = [titles] if isinstance(titles, str) else titles
    if titles is not None and not (isinstance(titles, list) and all(isinstance(title, str) for title in titles)):
        raise RewardError(f"the column gold_titles must be a list of texts, got {titles!r:.80}. Correct the row.")
    return truths, titles


def _measure(trajectory: Trajectory) -> dict[str, float]:
    answer = marked_answer(trajectory) or ""
    truths, titles = read_row(trajectory.prompt)
    is_given = bool(normalize_text(answer))
    metrics = {
        "em": float(is_given and any(normalize_text(answer) == normalize_text(truth) for truth in truths)),
        "f1": max((word_f1(answer, truth) for truth in truths), default=0.0),
    }
    return metrics if titles is None else metrics | {"recall": gold_recall(trajectory, titles)}
