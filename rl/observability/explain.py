"""What happened in one step, prompt by prompt, from the files of a run alone: no model, no tokenizer."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rl.batches import Exclusion
from rl.errors import DataError
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import TokenRecord, read_tokens, recorded_steps
from rl.observability.trajectories import read_records

UPDATE_METRICS = (
    "actor/pg_loss", "actor/grad_norm", "actor/lr", "actor/pg_clipfrac", "actor/ppo_kl", "actor/entropy",
    "actor/kl", "actor/skipped_steps", "training/rollout_probs_diff_max",
)  # fmt: skip
_NUM_MOVED = 6
"""Tokens and texts to name in each direction."""
_CONTEXT = 10
"""Tokens before and after a token that moved."""


@dataclass(slots=True, frozen=True)
class Update:
    """What the update did to the sampled tokens of one trajectory, over all its sequences."""

    ratio_min: float
    ratio_max: float
    clip_fraction: float
    weight_min: float
    """Correction weights; 0 if `rollout_correction` rejected a sequence."""
    weight_mean: float
    reference_kl: float | None
    """Mean over tokens of the actor's log-prob minus the reference's, nats; None without a KL term in the loss."""
    largest_difference: float
    """Largest distance between the engine's log-prob of a token and the actor's, nats."""
    mean_move: float
    """Mean over tokens of the log-prob after the update minus before, nats."""


@dataclass(slots=True, frozen=True)
class Sampled:
    """One trajectory of the step."""

    id: str
    score: float | None
    rewards: dict[str, float]
    reward: float | None
    """The score after length shaping and the KL penalty."""
    kl_penalty: float
    advantage: float | None
    exclusion: Exclusion | None
    """Why it was not trained on."""
    failure: str | None
    num_sampled: int
    num_turns: int
    stop_reason: str
    update: Update | None
    """None if it was not trained on, or the step's tokens are not recorded."""


@dataclass(slots=True, frozen=True)
class PromptStory:
    """One prompt with its trajectories."""

    id: str
    text: str
    """The last message of the prompt."""
    ground_truth: str
    verdict: str
    """In words: trained on, or left out and why."""
    trajectories: list[Sampled]


@dataclass(slots=True, frozen=True)
class MovedToken:
    """A token whose log-prob the update moved far."""

    trajectory_id: str
    sequence: int
    position: int
    piece: str
    before: str
    """Text of the tokens before it."""
    after: str
    move: float
    """Log-prob after the update minus before, nats."""
    old_logprob: float
    advantage: float
    num_alike: int
    """Trajectories with the same token in the same context, this one included."""


@dataclass(slots=True, frozen=True)
class MovedText:
    """All tokens of the step with the same text."""

    piece: str
    num_tokens: int
    mean_move: float


@dataclass(slots=True, frozen=True)
class Direction:
    """How the update moved the tokens of one sign of advantage."""

    num_tokens: int
    mean_move: float
    num_trajectories: int
    num_against: int
    """Trajectories whose mean log-prob moved against the sign of their advantage."""


@dataclass(slots=True, frozen=True)
class StepStory:
    """One step."""

    step: int
    metrics: dict[str, float]
    """Those of `UPDATE_METRICS` that the step has."""
    exclusions: dict[str, int]
    """Trajectories left out, by reason."""
    prompts: list[PromptStory]
    are_tokens_recorded: bool
    """If not, the fields below are empty, and so are `Sampled.update`."""
    recorded_steps: list[int]
    reinforced: Direction | None
    """Tokens with a positive advantage."""
    discouraged: Direction | None
    """Tokens with a negative advantage."""
    tokens_up: list[MovedToken]
    tokens_down: list[MovedToken]
    texts_up: list[MovedText]
    """By the sum of their moves."""
    texts_down: list[MovedText]


def explain_step(run: RunDirectory, step: int, prompt: str | None = None) -> StepStory:
    """Collect what the files of a run say about a step.

    Args:
        run: The run.
        step: Number of the step, from 1.
        prompt: Id of the only prompt to explain; None for all.

    Raises:
        DataError: The step has no trajectories, the prompt is not in it, a file is damaged, or a version wrote it that
            did not record why trajectories are left out.
    """
    path, recorded = run.step_file(step), recorded_steps(run)
    records = read_records(path)
    if any("exclusion" not in record for record in records):
        raise DataError(f"{path}: an older version wrote it, without advantages and reasons. Run the step anew.")
    by_prompt = {name: list(own) for name, own in itertools.groupby(records, key=lambda r: r["id"].rpartition("/")[0])}
    if prompt is not None:
        if prompt not in by_prompt:
            raise DataError(f"--prompt: no prompt '{prompt}' in step {step}. Available: {', '.join(by_prompt)}.")
        by_prompt = {prompt: by_prompt[prompt]}
    rows: dict[str, list[TokenRecord]] = {record["id"]: [] for own in by_prompt.values() for record in own}
    for row in read_tokens(run, step) if step in recorded else ():
        rows.get(row.trajectory_id, []).append(row)
    trained = [row for of_one in rows.values() for row in of_one if row.trained is not None]
    exclusions = Counter(r["exclusion"] for own in by_prompt.values() for r in own if r["exclusion"] is not None)
    metric = run.read_config().rl_config.filter_groups_metric
    up, down = _moved_tokens(trained)
    texts_up, texts_down = _moved_texts(trained)
    return StepStory(
        step=step,
        metrics=_metrics(run, step),
        exclusions=dict(exclusions),
        prompts=[_prompt(name, own, rows, metric) for name, own in by_prompt.items()],
        are_tokens_recorded=step in recorded,
        recorded_steps=recorded,
        reinforced=_direction(trained, 1.0),
        discouraged=_direction(trained, -1.0),
        tokens_up=up,
        tokens_down=down,
        texts_up=texts_up,
        texts_down=texts_down,
    )


def _metrics(run: RunDirectory, step: int) -> dict[str, float]:
    rows = [row for row in run.read_metrics() if row["step"] == step and "timing_s/step" in row]
    return {name: rows[-1][name] for name in UPDATE_METRICS if name in rows[-1]} if rows else {}


def _prompt(
    name: str, records: Sequence[dict[str, Any]], rows: Mapping[str, list[TokenRecord]], metric: str
) -> PromptStory:
    trajectories = [_sampled(record, rows.get(record["id"], [])) for record in records]
    messages = records[0]["messages"]
    return PromptStory(
        id=name,
        text=str(messages[-1].get("content") or "") if messages else "",
        ground_truth=records[0]["ground_truth"],
        verdict=_verdict(trajectories, metric),
        trajectories=trajectories,
    )


def _sampled(record: Mapping[str, Any], rows: Sequence[TokenRecord]) -> Sampled:
    exclusion = record["exclusion"]
    return Sampled(
        id=record["id"],
        score=record["score"],
        rewards=record["rewards"],
        reward=record["reward"],
        kl_penalty=record["kl_penalty"],
        advantage=record["advantage"],
        exclusion=None if exclusion is None else Exclusion(exclusion),
        failure=record["reward_error"] or record["failure"],
        num_sampled=record["num_sampled"],
        num_turns=len(record["turns"]),
        stop_reason=record["stop_reason"],
        update=_update(rows),
    )


def _update(rows: Iterable[TokenRecord]) -> Update | None:
    trained = [(row, row.trained, row.loss_mask > 0) for row in rows if row.trained is not None]
    if not trained:
        return None
    ratios = np.concatenate([t.ratios[mask] for _, t, mask in trained])
    weights = np.concatenate([t.correction_weights[mask] for _, t, mask in trained])
    moves = np.concatenate([(t.new_logprobs - t.old_logprobs)[mask] for _, t, mask in trained])
    references = [(t.old_logprobs - t.ref_logprobs)[mask] for _, t, mask in trained if t.ref_logprobs is not None]
    differences = np.concatenate([(row.rollout_logprobs - t.old_logprobs)[mask] for row, t, mask in trained])
    return Update(
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        clip_fraction=float(np.concatenate([t.is_clipped[mask] for _, t, mask in trained]).mean()),
        weight_min=float(weights.min()),
        weight_mean=float(weights.mean()),
        reference_kl=None if not references else float(np.concatenate(references).mean()),
        largest_difference=float(np.abs(differences).max()),
        mean_move=float(moves.mean()),
    )


def _verdict(trajectories: Sequence[Sampled], metric: str) -> str:
    """Whether a prompt is trained on and if not, or only in part, why."""
    reasons = Counter(t.exclusion for t in trajectories if t.exclusion is not None)
    num_kept = len(trajectories) - reasons.total()
    values = [t.reward for t in trajectories if t.reward is not None]
    equal = f"the same reward, {values[0]:.3g}" if values and max(values) == min(values) else "advantage 0"
    words = {
        Exclusion.NO_SCORE: "without a score",
        Exclusion.CUT_OFF: "cut off by the token budget (overlong_filter_enable)",
        Exclusion.NOTHING_SAMPLED: "without a sampled token",
        Exclusion.UNIFORM_GROUP: f"whose '{metric}' does not differ (filter_groups_enable)",
        Exclusion.ZERO_ADVANTAGE: f"with {equal}: nothing to learn from",
    }
    parts = [f"{count} {words[reason]}" for reason, count in reasons.items()]
    if not num_kept:
        return "left out: " + ", ".join(parts)
    return f"trained on {num_kept} of {len(trajectories)}" + (f"; left out: {', '.join(parts)}" if parts else "")


def _direction(trained: Sequence[TokenRecord], sign: float) -> Direction | None:
    """How the tokens moved whose advantage has this sign; trajectories of several sequences count once for each."""
    moves: list[np.ndarray] = []
    for row in trained:
        assert row.trained is not None and row.change is not None, "only trained rows are asked for"
        chosen = row.trained.advantages * sign > 0
        if chosen.any():
            moves.append(row.change[chosen])
    if not moves:
        return None
    return Direction(
        num_tokens=sum(map(len, moves)),
        mean_move=float(np.concatenate(moves).mean()),
        num_trajectories=len(moves),
        num_against=sum(bool(of_row.mean() * sign < 0) for of_row in moves),
    )


def _moved_tokens(trained: Sequence[TokenRecord]) -> tuple[list[MovedToken], list[MovedToken]]:
    """The tokens that moved most, up and down; those with the same context count as one."""
    places = []
    for row in trained:
        assert row.change is not None, "only trained rows are asked for"
        places += [(float(row.change[position]), row, int(position)) for position in np.flatnonzero(row.loss_mask)]
    places.sort(key=lambda place: place[0])
    up = _first_moved(place for place in reversed(places) if place[0] > 0)
    return up, _first_moved(place for place in places if place[0] < 0)


def _first_moved(places: Iterable[tuple[float, TokenRecord, int]]) -> list[MovedToken]:
    """The first tokens, each with the number of its like among all."""
    found: dict[tuple[str, ...], MovedToken] = {}
    for move, row, position in places:
        around = row.pieces[max(0, position - _CONTEXT) : position + 1 + _CONTEXT]
        key = (*around, str(position))
        if key in found:
            found[key] = replace(found[key], num_alike=found[key].num_alike + 1)
        elif len(found) < _NUM_MOVED:
            found[key] = _moved(move, row, position)
    return list(found.values())


def _moved(move: float, row: TokenRecord, position: int) -> MovedToken:
    assert row.trained is not None, "a token that moved was trained on"
    return MovedToken(
        trajectory_id=row.trajectory_id,
        sequence=row.sequence,
        position=position,
        piece=row.pieces[position],
        before="".join(row.pieces[max(0, position - _CONTEXT) : position]),
        after="".join(row.pieces[position + 1 : position + 1 + _CONTEXT]),
        move=move,
        old_logprob=float(row.trained.old_logprobs[position]),
        advantage=float(row.trained.advantages[position]),
        num_alike=1,
    )


def _moved_texts(trained: Sequence[TokenRecord]) -> tuple[list[MovedText], list[MovedText]]:
    """The texts of tokens that moved most in sum, up and down; those that occur once are left out."""
    moves: dict[str, list[float]] = defaultdict(list)
    for row in trained:
        assert row.change is not None, "only trained rows are asked for"
        for position in np.flatnonzero(row.loss_mask):
            moves[row.pieces[position]].append(float(row.change[position]))
    several = sorted(
        (found for found in moves.items() if found[0] and len(found[1]) > 1), key=lambda found: sum(found[1])
    )
    texts = [MovedText(piece, len(of_text), sum(of_text) / len(of_text)) for piece, of_text in several]
    up = [text for text in reversed(texts[-_NUM_MOVED:]) if text.mean_move > 0]
    return up, [text for text in texts[:_NUM_MOVED] if text.mean_move < 0]
