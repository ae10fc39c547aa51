from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rl.batches import GroupHeader
from rl.errors import TrainingError
from rl.observability.run_directory import RunDirectory
from rl.run.guard import SkipGuard
from rl.types import Prompt, StopReason, TokenSequence, Trajectory
from tests.samples import AtHand, group_of


def make_group() -> GroupHeader:
    prompt = Prompt("p", [{"role": "user", "content": "what"}], "42", "test")
    sequence = TokenSequence([1, 2])
    sequence.append_sampled([3, 4], [-0.5, math.nan], policy_version=1)
    return group_of(*(Trajectory(prompt, i, [sequence], [], StopReason.FINISHED, score=1.0) for i in range(3)))


def test_guard_writes_the_offending_trajectories_with_their_numbers(tmp_path: Path) -> None:
    guard = SkipGuard(RunDirectory(tmp_path), 3)
    guard.check(1, [], [make_group()], AtHand())
    assert not list(tmp_path.iterdir())
    guard.check(2, ["p/1", "p/1", "demonstration-7"], [make_group()], AtHand())
    first, second = [json.loads(line) for line in (tmp_path / "skipped/step_000002.jsonl").read_text().splitlines()]
    assert (first["id"], first["score"], first["stop_reason"]) == ("p/1", 1.0, "finished")
    (sequence,) = first["sequences"]
    assert sequence["token_ids"] == [1, 2, 3, 4] and sequence["loss_mask"] == [0, 0, 1, 1]
    assert sequence["rollout_logprobs"][:3] == [0.0, 0.0, -0.5] and math.isnan(sequence["rollout_logprobs"][3])
    assert second == {"id": "demonstration-7"}


def test_guard_stops_after_the_last_tolerated_step_in_a_row(tmp_path: Path) -> None:
    guard = SkipGuard(RunDirectory(tmp_path), 2)
    for step, offending in enumerate((["p/0"], [], ["p/0"]), start=1):
        guard.check(step, offending, [make_group()], AtHand())
    with pytest.raises(
        TrainingError, match=rf"step 4: .* in 2 steps in a row\. .* {tmp_path}/skipped/step_000004\.jsonl"
    ):
        guard.check(4, ["p/2"], [make_group()], AtHand())


def test_guard_of_one_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="in 1 steps in a row"):
        SkipGuard(RunDirectory(tmp_path), 1).check(1, ["p/0"], [], None)


def unscored(error: str | None) -> GroupHeader:
    group = make_group()
    for trajectory in group.trajectories:
        trajectory.score, trajectory.reward_error = None, error
    return group


def test_guard_stops_where_every_environment_failed(tmp_path: Path) -> None:
    group = unscored(None)
    for trajectory in group.trajectories:
        trajectory.stop_reason, trajectory.failure = StopReason.ENVIRONMENT_FAILED, "world.py:World: step: KeyError: 1"
    message = r"the first says 'world.py:World: step: KeyError: 1'. Correct rl_config.environment, rollout_function"
    with pytest.raises(TrainingError, match=message):
        SkipGuard(RunDirectory(tmp_path), 1).check(1, [], [group], AtHand())


def test_guard_stops_where_every_reward_failed_step_after_step(tmp_path: Path) -> None:
    guard = SkipGuard(RunDirectory(tmp_path), 2)
    broken = [unscored("right: returned nan as score, not a finite number")]
    broken[0].trajectories[2].reward_error = None  # it ended in its deadline
    guard.check(1, [], broken, AtHand())
    guard.check(2, [], [unscored("boom"), make_group()], AtHand())  # some have a score: the others are masked out
    guard.check(3, [], [unscored(None)], AtHand())  # no reward was asked
    guard.check(4, [], broken, AtHand())
    path = tmp_path / "skipped/step_000005.jsonl"
    message = (
        rf"step 5: a reward must be a number, got none in 2 steps in a row\. .* {path}: the first says 'right: ret"
    )
    with pytest.raises(TrainingError, match=message):
        guard.check(5, [], broken, AtHand())
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["id"] for r in records] == ["p/0", "p/1"]
    assert sorted(p.name for p in (tmp_path / "skipped").iterdir()) == [f"step_00000{n}.jsonl" for n in (1, 4, 5)]
