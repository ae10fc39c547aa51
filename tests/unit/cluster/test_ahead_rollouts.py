"""Rollouts that go on while the driver is elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
import ray

from rl.cluster import rollout_workers
from rl.cluster.ahead_rollouts import AheadRollouts
from rl.cluster.rollout_workers import RayWorkers
from rl.cluster.rollouts import RolloutGroup
from rl.config.kinds import StalenessStrategy
from rl.config.schema import Config
from rl.observability.staleness import WaitHint, staleness_metrics
from rl.rollout.headers import header_of_group
from rl.types import Group, Prompt, Sampling, StopReason, TokenSequence, Trajectory, WeightUpdate
from tests.unit.cluster.conftest import Ref
from tests.unit.cluster.test_rollouts import Worker, mixed

GREEDY = Sampling(temperature=0.0, max_tokens=4)


def make_config(**keys: Any) -> Config:
    config = Config()
    for name, value in keys.items():
        setattr(config.rl_config, name, value)
    return config


def make_rollouts(worker: Worker, config: Config, num_prompts: int = 20, kind: Any = AheadRollouts) -> Any:
    prompts = [Prompt(f"p{i}", [], "", "test") for i in range(num_prompts)]
    return kind(RayWorkers([worker], config, nodes=["here"]), prompts, config)


def expected(num: int, num_prompts: int = 20) -> list[str]:
    rollouts = make_rollouts(Worker(mixed), Config(), num_prompts, RolloutGroup)
    return [group.prompt.id for group in rollouts.take(num, {})]


class SlowWorker(Worker):
    """Its groups end when the test says so."""

    def __init__(self) -> None:
        super().__init__(self.begin)
        self.pending: dict[str, Ref] = {}
        self.names: list[str] = []

    def begin(self, prompt: Prompt) -> Any:
        self.names.append(prompt.id)
        header = header_of_group(mixed(prompt))
        self.pending[prompt.id] = Ref((header.trajectories, header.prompt_ids), never=True)
        return self.pending[prompt.id]

    def end(self, *names: str) -> None:
        for name in names:
            self.pending[name].never = False


def take(rollouts: AheadRollouts, num: int, version: int, metrics: dict[str, float] | None = None) -> list[str]:
    rollouts.update_weights(WeightUpdate(version, ()))
    return [group.prompt.id for group in rollouts.take(num, {} if metrics is None else metrics, step=version)]


def test_groups_of_later_steps_are_under_way_and_each_is_taken_once_in_order() -> None:
    worker, order = SlowWorker(), expected(12)
    rollouts = make_rollouts(worker, make_config(max_staleness=1))
    worker.answer = lambda prompt: _ended(worker, prompt, order[:4])
    metrics: dict[str, float] = {}
    assert take(rollouts, 4, 0, metrics) == order[:4]
    assert worker.names == order[:8]
    assert (metrics["rollout/open_groups"], metrics["rollout/waiting_groups"]) == (4.0, 0.0)
    worker.end(*order[4:8])
    worker.answer = lambda prompt: _ended(worker, prompt, order)
    assert take(rollouts, 4, 1) == order[4:8]
    assert worker.names == order[:12]


def _ended(worker: SlowWorker, prompt: Prompt, names: list[str]) -> Ref:
    ref = worker.begin(prompt)
    ref.never = prompt.id not in names
    return ref


def test_an_evaluation_in_between_leaves_open_groups_alone() -> None:
    worker, order = SlowWorker(), expected(8)
    rollouts = make_rollouts(worker, make_config(max_staleness=1))
    worker.answer = lambda prompt: _ended(worker, prompt, [*order[:4], "question"])
    take(rollouts, 4, 0)
    (group,) = rollouts.evaluate([Prompt("question", [], "", "test")], GREEDY)
    assert group.prompt.id == "question"
    worker.answer = lambda prompt: _ended(worker, prompt, [*worker.names, prompt.id])
    worker.end(*order[4:8])
    assert take(rollouts, 4, 1) == order[4:8]


@pytest.mark.parametrize("partial", [True, False])
def test_a_publish_waits_for_whole_trajectories_only_where_they_may_not_be_interrupted(partial: bool) -> None:
    worker, order = SlowWorker(), expected(8)
    rollouts = make_rollouts(worker, make_config(max_staleness=1, partial_rollout=partial))
    worker.answer = lambda prompt: _ended(worker, prompt, order[:4])
    take(rollouts, 4, 0)
    polls: list[int] = []
    wait = ray.wait

    def wait_and_end(refs: list[Ref], **options: Any) -> Any:
        polls.append(len(refs))
        worker.end(*order[4:8])
        return wait(refs, **options)

    ray.wait = wait_and_end  # type: ignore[assignment]
    try:
        rollouts.update_weights(WeightUpdate(1, ()))
    finally:
        ray.wait = wait  # type: ignore[assignment]
    assert polls[:-1] == ([] if partial else [4, 3, 2, 1])  # the last is the publish itself


def test_a_late_group_is_cancelled_and_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[Ref] = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    worker, order = SlowWorker(), expected(17)
    rollouts = make_rollouts(worker, make_config(max_staleness=1, staleness_strategy=StalenessStrategy.DROP))
    worker.answer = lambda prompt: _ended(worker, prompt, [name for name in order if name != order[5]])
    assert take(rollouts, 4, 0) == order[:4]
    metrics: dict[str, float] = {}
    assert take(rollouts, 4, 1, metrics) == [order[4], *order[6:9]]
    assert metrics["rollout/late_groups"] == 1.0
    assert f"group {order[5]}: dropped, it is not complete 1 steps after its start" in caplog.text
    take(rollouts, 4, 2)
    assert cancelled == [worker.pending[order[5]]]


def test_a_resumed_run_goes_on_with_the_same_prompts() -> None:
    config = make_config(max_staleness=1)
    whole, killed = make_rollouts(Worker(mixed), config), make_rollouts(Worker(mixed), config)
    order = [take(whole, 4, step) for step in range(4)]
    assert [take(killed, 4, step) for step in range(2)] == order[:2]
    state = json.loads(json.dumps(killed.state_dict()))
    resumed = make_rollouts(Worker(mixed), config)
    resumed.load_state_dict(state)
    assert [take(resumed, 4, step) for step in (2, 3)] == order[2:]


def test_a_checkpoint_of_the_other_kind_says_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    ahead = make_rollouts(Worker(mixed), make_config(max_staleness=1))
    take(ahead, 4, 0)
    make_rollouts(Worker(mixed), Config(), kind=RolloutGroup).load_state_dict(ahead.state_dict())
    assert "4 groups that the checkpoint has beyond its step are not trained on" in caplog.text


def test_the_last_steps_use_up_the_open_groups() -> None:
    config = make_config(max_staleness=2)
    config.megatron_training.total_epochs = 1
    config.megatron_training.global_batch_size = 4
    rollouts = make_rollouts(Worker(mixed), config, num_prompts=10)
    steps, step = [], 0
    while step < (rollouts.expected_steps(step) or 0):
        steps.append(take(rollouts, 4, step))
        step += 1
    assert [len(names) for names in steps] == [4, 4, 2]
    assert sorted(name for names in steps for name in names) == sorted(f"p{i}" for i in range(10))


def test_staleness_counts_publishes_between_sampling_and_training_token_by_token() -> None:
    prompt = Prompt("p", [], "", "test")
    group = header_of_group(Group(prompt, [sampled(prompt, 0, (1, 1)), sampled(prompt, 1, (1, 3, 3))]))
    for trajectory in group.trajectories:
        trajectory.ended_at = 100.0
    metrics = staleness_metrics([group], version=3, now=104.0)
    assert metrics["rollout/staleness/mean"] == pytest.approx((2 + 2 + 2 + 0 + 0) / 5)
    assert metrics["rollout/staleness/max"] == 2.0
    assert metrics["rollout/mixed_version_share"] == 0.5
    assert metrics["rollout/sampled_to_trained_s/max"] == 4.0


def sampled(prompt: Prompt, index: int, versions: tuple[int, ...]) -> Trajectory:
    """A trajectory with a token of each version."""
    sequence = TokenSequence([1, 2])
    for version in versions:
        sequence.append_sampled([3], [-0.5], version)
    return Trajectory(prompt, index, [sequence], [], StopReason.FINISHED)


def test_groups_that_ended_during_a_long_update_are_collected_and_their_worker_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(rollout_workers.time, "monotonic", lambda: clock[0])
    worker, order = SlowWorker(), expected(8)
    rollouts = make_rollouts(worker, make_config(max_staleness=1))
    worker.answer = lambda prompt: _ended(worker, prompt, [*order[:2], *order[4:]])
    assert take(rollouts, 2, 0) == order[:2]
    worker.end(*order[2:4])
    clock[0] = 1e9
    assert take(rollouts, 2, 1) == order[2:4]
    assert "kill" not in worker.called


def test_each_side_that_waits_for_long_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    hint = WaitHint()
    for idle in [0.9] * 7 + [0.1]:
        hint.observe({"rollout/engine_idle_share": idle, "rollout/trainer_wait_share": 0.2})
    assert caplog.messages == [
        "in the last 8 steps engines had nothing to sample for 80 % of the time. Raise rl_config.max_staleness or "
        "global_batch_size, so that more groups are open; or give the actor more devices."
    ]
    hint.observe({"rollout/engine_idle_share": 0.9, "rollout/trainer_wait_share": 0.3})
    assert len(caplog.messages) == 1
