from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from rl.cluster import rollout_workers as module
from rl.cluster.rollout_workers import RayWorkers
from rl.cluster.rollouts import RolloutGroup
from rl.cluster.turns import Turns
from rl.config.schema import Config
from rl.errors import RewardError, RolloutError
from rl.rollout.headers import header_of_group
from rl.types import (
    BusySeconds,
    Group,
    Prompt,
    Sampling,
    Span,
    StopReason,
    ToolResult,
    ToolStatus,
    Trajectory,
    Turn,
    WeightUpdate,
)
from tests.unit.cluster.conftest import Method, Ref

GREEDY = Sampling(temperature=0.0, max_tokens=4)


def make_group(prompt: Prompt, scores: tuple[float | None, ...], reason: StopReason = StopReason.FINISHED) -> Group:
    return Group(prompt, [Trajectory(prompt, i, [], [], reason, score=score) for i, score in enumerate(scores)])


class Worker:
    """Answers each prompt from a function, and keeps what it was called with."""

    def __init__(self, answer: Callable[[Prompt], Any]) -> None:
        self.answer = answer
        self.prompts: list[str] = []
        self.called: list[str] = []
        self.run_group = Method(self._run_group)
        self.sleep = Method(lambda: self.called.append("sleep"))
        self.restart_clocks = Method(lambda: BusySeconds(engine_s=0.0, reward_s=0.25))
        self.update_weights = Method(self._update_weights)

    def _run_group(self, prompt: Prompt, num_samples: int, sampling: Sampling, keeps_rows: bool) -> Any:
        self.prompts.append(prompt.id)
        answer = self.answer(prompt)
        if isinstance(answer, Ref):
            return answer, Ref(), Ref()
        group = header_of_group(answer)
        return Ref((group.trajectories, group.prompt_ids)), Ref(group.rows), Ref(group.record)

    def _update_weights(self, update: WeightUpdate) -> Span:
        self.called.append(f"update {update.version}")
        return Span("rollout 0", "update_weights", 1.0, 2.0)

    def killed(self) -> None:
        self.called.append("kill")


class Tenant:
    """The actor, as far as it takes turns."""

    num_left = 0

    def leave_devices(self) -> None:
        self.num_left += 1


def mixed(prompt: Prompt) -> Group:
    return make_group(prompt, (1.0, 0.0))


def make_rollouts(*workers: Worker, num_prompts: int = 20, config: Config | None = None, **kwargs: Any) -> RolloutGroup:
    prompts = [Prompt(f"p{i}", [], "", "test") for i in range(num_prompts)]
    config = config or Config()
    return RolloutGroup(RayWorkers(workers, config, nodes=["here"] * len(workers)), prompts, config, **kwargs)


def filtering(max_batches: int = 10) -> Config:
    config = Config()
    config.rl_config.filter_groups_enable = True
    config.rl_config.filter_groups_max_batches = max_batches
    return config


def test_take_gives_the_next_prompts_in_order() -> None:
    rollouts, expected = make_rollouts(Worker(mixed)), make_rollouts(Worker(mixed)).cursor.take(8)
    taken = [group.prompt.id for _ in range(2) for group in rollouts.take(4, {})]
    assert taken == [f"p{i}" for i in expected]


def test_take_over_an_epochs_end_names_a_prompt_met_again_after_its_epoch() -> None:
    taken = [group.prompt.id for group in make_rollouts(Worker(mixed), num_prompts=2).take(5, {})]
    assert sorted(taken[:2]) == ["p0", "p1"]
    assert sorted(taken[2:4]) == ["p0@1", "p1@1"]
    assert taken[4] in ("p0@2", "p1@2")


def test_take_resumed_goes_on_with_the_same_names() -> None:
    whole, killed, resumed = (make_rollouts(Worker(mixed), num_prompts=3) for _ in range(3))
    expected = [group.prompt.id for _ in range(3) for group in whole.take(2, {})][4:]
    for _ in range(2):
        killed.take(2, {})
    resumed.load_state_dict(killed.state_dict())
    assert [group.prompt.id for group in resumed.take(2, {})] == expected


def test_take_resumes_from_a_checkpoint_without_carried_groups() -> None:
    killed, resumed = make_rollouts(Worker(mixed)), make_rollouts(Worker(mixed))
    killed.take(2, {})
    resumed.load_state_dict({"cursor": killed.state_dict()["cursor"]})
    assert [g.prompt.id for g in resumed.take(2, {})] == [g.prompt.id for g in killed.take(2, {})]


def test_take_refills_groups_without_variance_and_keeps_them() -> None:
    rollouts = make_rollouts(Worker(mixed), config=filtering())
    order = [f"p{i}" for i in make_rollouts(Worker(mixed)).cursor.take(8)]
    solved = {order[0], order[2], order[4]}  # 4 wanted; the two refills bring one more that is solved
    rollouts.workers.workers[0].answer = lambda p: make_group(p, (1.0, 1.0)) if p.id in solved else mixed(p)
    shown: list[tuple[int, int]] = []
    rollouts.on_group = lambda done, wanted: shown.append((done, wanted))
    assert [group.prompt.id for group in rollouts.take(4, {})] == order[:7]
    assert shown[-1] == (4, 4)
    assert [group.prompt.id for group in rollouts.take(1, {})] == [order[7]]


@pytest.mark.parametrize(("max_batches", "num_tried"), [(1, 4), (2, 8), (0, 20), (-1, 20)])
def test_take_gives_up_refilling_at_the_limit(max_batches: int, num_tried: int) -> None:
    rollouts = make_rollouts(Worker(lambda p: make_group(p, (0.0, 0.0))), config=filtering(max_batches))
    assert len(rollouts.take(4, {})) == num_tried


def is_useful(name: str) -> bool:
    return int(name.split("@")[0][1:]) % 4 > 0


def mostly_useful(prompt: Prompt) -> Group:
    return mixed(prompt) if is_useful(prompt.id) else make_group(prompt, (1.0, 1.0))


def test_take_carries_surplus_groups_over_and_a_resumed_run_repeats_it() -> None:
    whole, killed, resumed = (make_rollouts(Worker(mostly_useful), config=filtering()) for _ in range(3))
    for rollouts in (whole, killed):
        rollouts.buffer.useful_share = 0.5  # 8 prompts at once
    steps: list[list[str]] = []
    metrics: list[dict[str, float]] = [{}, {}, {}]
    for step in metrics:
        steps.append([group.prompt.id for group in whole.take(4, step)])
    assert metrics[0]["rollout/surplus_groups"] == metrics[1]["rollout/carried_groups"] == 1.0
    killed.take(4, {})
    state = json.loads(json.dumps(killed.state_dict()))
    resumed.load_state_dict(state)
    assert len(state["buffer"]["surplus"]) == 1
    assert [[group.prompt.id for group in resumed.take(4, {})] for _ in range(2)] == steps[1:]
    for names in steps:
        assert sum(map(is_useful, names)) == 4
    assert len({name for names in steps for name in names}) == sum(map(len, steps))  # no group is used twice


def test_take_says_how_the_batch_was_filled(caplog: pytest.LogCaptureFixture) -> None:
    rollouts = make_rollouts(Worker(lambda p: make_group(p, (0.0, 0.0))), config=filtering(2))
    metrics: dict[str, float] = {}
    rollouts.take(4, metrics)
    assert metrics["rollout/missing_groups"] == 4.0
    assert metrics["rollout/engine_idle_share"] == 1.0
    assert metrics["timing_s/reward"] == 0.25
    assert "only 0 of 4 groups have differing scores after 8 prompts, and the step learns from no more." in caplog.text


def test_take_refuses_a_filter_metric_that_no_reward_gives() -> None:
    config = filtering()
    config.rl_config.filter_groups_metric = "base_acc/f1"
    worker = Worker(mixed)
    with pytest.raises(RewardError, match=r"filter_groups_metric: unknown name 'base_acc/f1'"):
        make_rollouts(worker, config=config).take(4, {})
    assert len(worker.prompts) < 9


def test_take_sends_the_prompts_of_a_dead_worker_to_another() -> None:
    dead, alive = Worker(lambda p: Ref(error=RayActorError())), Worker(mixed)
    groups = make_rollouts(dead, alive).take(6, {})
    assert len({group.prompt.id for group in groups}) == 6
    assert set(alive.prompts) == {group.prompt.id for group in groups}


def test_take_repeats_a_whole_group_elsewhere_when_its_engine_died() -> None:
    dead = Worker(lambda p: make_group(p, (1.0, None), StopReason.ENGINE_FAILED))
    groups = make_rollouts(dead, Worker(mixed)).take(2, {})
    assert all(t.stop_reason is StopReason.FINISHED for group in groups for t in group.trajectories)


def test_take_without_a_worker_left_is_an_error() -> None:
    with pytest.raises(RolloutError, match="no rollout worker is left"):
        make_rollouts(Worker(lambda p: Ref(error=RayActorError()))).take(2, {})


def test_take_kills_a_hung_worker_and_goes_on_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.__setitem__(0, clock[0] + 100) or clock[0])
    pending: list[Ref] = []

    def hang(prompt: Prompt) -> Ref:
        pending.append(Ref(never=True))
        return pending[-1]

    hung = Worker(hang)

    def killed() -> None:
        hung.called.append("kill")
        for ref in pending:
            ref.never, ref.error = False, RayActorError()

    monkeypatch.setattr(hung, "killed", killed)
    groups = make_rollouts(hung, Worker(mixed)).take(4, {})
    assert len({group.prompt.id for group in groups}) == 4
    assert hung.called == ["kill"]


def test_take_sends_an_engine_no_more_than_it_can_run_soon() -> None:
    config = Config()
    config.generate_config.max_num_seqs, config.rl_config.n_samples_per_prompt = 4, 4  # 2 groups at once
    most = [0]
    worker = Worker(mixed)
    rollouts = make_rollouts(worker, config=config)
    worker.answer = lambda p: most.__setitem__(0, max(most[0], rollouts.workers.router.num_sessions(0))) or mixed(p)
    assert len(rollouts.take(10, {})) == 10
    assert most == [2]


def unavailable(prompt: Prompt) -> Group:
    group = make_group(prompt, (None, None), StopReason.TOOL_UNAVAILABLE)
    for trajectory in group.trajectories:
        trajectory.turns = [Turn("", 1, results=[ToolResult("search", "", ToolStatus.UNAVAILABLE)])]
    return group


def test_take_with_a_dead_service_fails_with_its_name_after_one_batch() -> None:
    worker = Worker(unavailable)
    with pytest.raises(RolloutError, match="tool search: its service did not answer in 8 of 8"):
        make_rollouts(worker, config=filtering()).take(4, {})
    assert len(worker.prompts) < 9


def test_evaluate_with_a_dead_service_fails_too() -> None:
    rollouts = make_rollouts(Worker(unavailable))
    with pytest.raises(RolloutError, match="tool search"):
        rollouts.evaluate(rollouts.prompts[:2], GREEDY, 2)


def test_take_tolerates_the_configured_share_of_unavailable_tools() -> None:
    worker = Worker(lambda p: unavailable(p) if p.id[:2] in ("p0", "p1") else mixed(p))
    rollouts = make_rollouts(worker, num_prompts=4)
    assert len(rollouts.take(4, {})) == 4  # 0.5 is not above 0.5
    rollouts.config.rl_config.max_tool_unavailable_share = 0.4
    with pytest.raises(RolloutError, match="4 of 8"):
        rollouts.take(4, {})


def test_engines_get_the_last_publish_again_where_the_actor_had_the_devices_without_a_new_one() -> None:
    worker, actor = Worker(mixed), Tenant()
    rollouts = make_rollouts(worker)
    rollouts.turns = Turns(actor)
    rollouts.update_weights(WeightUpdate(0, ()))
    rollouts.take(1, {})
    rollouts.turns.begin(actor)
    rollouts.evaluate(rollouts.prompts[:1], GREEDY)  # a step without samples: nothing was published in between
    rollouts.take(1, {})
    rollouts.turns.begin(actor)
    rollouts.update_weights(WeightUpdate(1, ()))
    rollouts.take(1, {})
    assert worker.called == ["update 0", "sleep", "update 0", "sleep", "update 1"]
    assert actor.num_left == 3


def test_update_weights_goes_on_without_a_dead_worker() -> None:
    dead, alive = Worker(mixed), Worker(mixed)
    dead.update_weights = Method(lambda update: Ref(error=RayActorError()))
    rollouts = make_rollouts(dead, alive)
    rollouts.update_weights(WeightUpdate(3, ()))
    assert alive.called == ["update 3"]
    assert rollouts.take_spans() == [Span("rollout 0", "update_weights", 1.0, 2.0)]
    assert rollouts.take_spans() == []
    assert list(rollouts.workers.workers) == [1]


@pytest.mark.parametrize(
    ("cause", "expected"), [(OSError(28, "No space left"), OSError), (ValueError("a bug"), RayTaskError)]
)
def test_a_file_that_could_not_be_written_is_told_at_the_next_one(cause: Exception, expected: type, tmp_path) -> None:
    """As an OSError with its number: a full disk has advice of its own."""
    answers = iter([Ref(error=RayTaskError("write", "traceback", cause)), Ref()])
    writer = SimpleNamespace(write=Method(lambda *args: next(answers)))
    workers = RayWorkers([Worker(mixed)], Config(), nodes=["here"], rewards=[writer])
    workers.write(tmp_path / "first", [])
    with pytest.raises(expected) as caught:
        workers.write(tmp_path / "second", [])
    assert getattr(caught.value, "errno", None) == getattr(cause, "errno", None)
    workers.write(tmp_path / "third", [])
    workers.finish_writing()


def test_groups_of_an_evaluation_keep_no_rows() -> None:
    asked: list[bool] = []
    worker = Worker(mixed)
    answer = worker.run_group.function
    worker.run_group = Method(lambda *args: asked.append(args[3]) or answer(*args))
    rollouts = make_rollouts(worker)
    rollouts.evaluate([Prompt("question", [], "", "test")], GREEDY)
    rollouts.take(1, {})
    assert asked == [False, True]
