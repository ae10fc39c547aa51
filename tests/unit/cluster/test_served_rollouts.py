"""What the training loop takes of clients' groups, and which of them a checkpoint covers."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from rl.batches import GroupHeader
from rl.cluster.served_rollouts import ServedRollouts, TrainingEndedByClientError
from rl.cluster.serving import BatchClosed, EndWanted, EnginesDied, SaveWanted, ServedGroup
from rl.config.schema import Config
from rl.config.serve import ServeConfig
from rl.errors import RolloutError
from rl.rollout.group_text import prompt_of, to_text
from rl.serving.journal import Journal
from rl.types import BusySeconds, Prompt, Span, StopReason, TokenSequence, Trajectory, Turn, WeightUpdate
from tests.samples import group_of


class Workers:
    """Engines that are never busy."""

    num_alive, num_running = 1, 0

    def call(self, method: str, *, what: str) -> list[Any]:
        return [BusySeconds(0.0, 0.0)]

    def update_weights(self, update: WeightUpdate) -> list[Span]:
        return []

    def keep(self, value: Any) -> Any:
        return value

    fetch = keep


class Front:
    """A service in which these events happen, one at each call."""

    def __init__(self, *events: Any) -> None:
        self.events = deque(events)
        self.calls: list[tuple[Any, ...]] = []

    def next_events(self) -> list[Any]:
        return [self.events.popleft()]

    def protocol_metrics(self) -> dict[str, float]:
        return {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args))


def trajectory(prompt: Prompt, index: int, score: float | None, version: int = 0) -> Trajectory:
    sequence = TokenSequence([1, 2, 3])
    sequence.append_sampled([4, 5], [-0.1, -0.2], version)
    return Trajectory(prompt, index, [sequence], [Turn("x", 2)], StopReason.FINISHED, score)


def group(number: int, *scores: float | None, version: int = 0) -> ServedGroup:
    prompt = Prompt(f"g{number}", [], "", "service")
    members = [trajectory(prompt, index, score, version) for index, score in enumerate(scores)]
    return ServedGroup(number, group_of(*members))


def rollouts(folder: Path, *events: Any, **serve: Any) -> ServedRollouts:
    config = Config(serve_config=ServeConfig(**serve))
    return ServedRollouts(Workers(), Front(*events), config, folder / "journal")  # type: ignore[arg-type]


def names(groups: list[GroupHeader]) -> list[str]:
    return [g.prompt.id for g in groups]


def journaled(made: ServedRollouts) -> list[int]:
    return [number for number, _ in made._journal.read()]


def write(made: ServedRollouts, *groups: ServedGroup) -> None:
    for one in groups:
        made._journal.write_text(one.number, to_text(one.header.prompt, one.header.record, one.header.rows))


def test_take_gives_groups_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    made = rollouts(tmp_path, group(1, 1, 0), group(0, 0, 1), group(2, 1, 1))
    assert names(made.take(2, {})) == ["g1", "g0"]
    assert names(made.take(1, {})) == ["g2"]


def test_a_group_without_any_score_does_not_count(tmp_path: Path) -> None:
    metrics: dict[str, float] = {}
    taken = rollouts(tmp_path, group(0, None, None), group(1, 1, None)).take(1, metrics)
    assert names(taken) == ["g0", "g1"]
    assert (metrics["serve/unscored_groups"], metrics["serve/lost_rollouts"]) == (1, 3)


@pytest.mark.parametrize(("max_staleness", "kept"), [(0, ["g2"]), (1, ["g1", "g2"]), (2, ["g0", "g1", "g2"])])
def test_groups_older_than_the_bound_are_dropped_and_counted(tmp_path: Path, max_staleness: int, kept: list[str]):
    old, newer, now = group(0, 1, version=1), group(1, 1, version=2), group(2, 1, version=3)
    made = rollouts(tmp_path, old, newer, now, BatchClosed(), batch_trigger="client", max_staleness=max_staleness)
    made.update_weights(WeightUpdate(version=3, paths=(), checksum=None))
    metrics: dict[str, float] = {}
    assert names(made.take(9, metrics)) == kept
    assert metrics["serve/dropped_groups"] == 3 - len(kept)
    assert metrics["serve/staleness"] == max_staleness


def test_a_client_closes_a_batch_early_but_not_an_empty_one(tmp_path: Path) -> None:
    made = rollouts(tmp_path, BatchClosed(), group(0, 1), BatchClosed())
    assert names(made.take(8, {})) == ["g0"]
    assert ("batch_was_empty",) in made._front.calls  # type: ignore[attr-defined]


def test_the_end_and_the_death_of_all_engines_end_the_wait(tmp_path: Path) -> None:
    with pytest.raises(TrainingEndedByClientError):
        rollouts(tmp_path, group(0, 1), EndWanted()).take(8, {})
    with pytest.raises(RolloutError, match="no engine is left"):
        rollouts(tmp_path, EnginesDied("no engine is left.")).take(8, {})


def test_a_checkpoint_covers_the_groups_of_completed_steps_and_clears_the_journal_when_it_is_there(tmp_path: Path):
    events = [group(0, 1), group(1, 1), group(2, 1), SaveWanted("best"), group(3, 1)]
    made = rollouts(tmp_path, *events)
    write(made, *(event for event in events if isinstance(event, ServedGroup)))
    saved: list[Any] = []

    def save(name: str) -> Path:
        saved.append(made.state_dict()["served"])
        return tmp_path

    made.on_save = save
    made.take(2, {}, step=0)
    assert made.state_dict()["served"]["covered"] == [0, 1]
    assert journaled(made) == [0, 1, 2, 3]  # the checkpoint may still fail
    made.take(2, {}, step=1)  # in the middle of it a client saves
    assert journaled(made) == [2, 3]
    assert saved[0]["covered"] == []
    assert made.state_dict()["served"]["covered"] == [2, 3]


def test_a_resumed_service_trains_on_what_the_checkpoint_does_not_cover(tmp_path: Path) -> None:
    first = rollouts(tmp_path / "a", group(0, 1), group(1, 1))
    write(first, group(0, 1), group(1, 0.5), group(2, 0.25))
    first.take(1, {})
    state = first.state_dict()
    again = rollouts(tmp_path / "b", group(3, 1))
    again.load_state_dict(state)
    assert ("use", again.config, tmp_path / "b", 3, {"g1", "g2"}) in again._front.calls  # type: ignore[attr-defined]
    taken = again.take(3, {})
    assert names(taken) == ["g1", "g2", "g3"]
    assert [t.score for g in taken for t in g.trajectories] == [0.5, 0.25, 1]
    assert journaled(again) == [1, 2]


def test_a_group_in_the_journal_is_whole(tmp_path: Path) -> None:
    prompt = Prompt("g", [{"role": "user", "content": "é?"}], "3", "service", {"level": 2})
    header = group_of(trajectory(prompt, 0, 1.0))
    Journal(tmp_path).write(7, prompt, header.record, header.rows)
    ((number, text),) = Journal(tmp_path).read()
    assert (number, prompt_of(text)) == (7, prompt)
