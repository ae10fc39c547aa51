"""Runs over `total_epochs` with dynamic sampling: each prompt is used so often, and the schedule ends with the run."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from rl.batch.groups import plan_batch
from rl.batch.layout import packing_layout
from rl.batches import RunPlace
from rl.cluster.rollout_workers import RayWorkers
from rl.cluster.rollouts import RolloutGroup
from rl.config.schema import Config
from rl.run.run import Run
from rl.types import Group, Prompt, Span, StopReason, TokenSequence, Trajectory
from tests.unit.cluster.test_rollouts import Worker


class NoActor:
    """Has no weights to keep."""

    def save_checkpoint(self, directory: Path) -> None: ...

    def load_checkpoint(self, directory: Path) -> None: ...

    def take_spans(self) -> list[Span]:
        return []


def make_config(folder: Path, *, epochs: int, is_filtered: bool = True) -> Config:
    config = Config()
    config.megatron_training.output_dir, config.megatron_training.run_name = str(folder), "first"
    config.megatron_training.global_batch_size, config.megatron_training.total_epochs = 8, epochs
    config.megatron_training.save_interval = 2
    config.rl_config.filter_groups_enable = is_filtered
    config.megatron_training.record_tokens_every = 0
    config.megatron_training.trackers = []
    return config


class Epochs:
    """One run: prompts of which every `one_in` is useful, 2 trajectories each."""

    def __init__(self, config: Config, num_prompts: int, one_in: int) -> None:
        def answer(prompt: Prompt) -> Group:
            self.used[prompt.id.split("@")[0]] += 1
            number = int(prompt.id.split("@")[0].split("-")[1])
            group = Group(prompt, [])
            for i, score in enumerate((1.0, 1.0 if number % one_in else 0.0)):
                sequence = TokenSequence([1])
                sequence.append_sampled([2], [-0.5], 0)
                group.trajectories.append(Trajectory(prompt, i, [sequence], [], StopReason.FINISHED, score=score))
            return group

        self.used: Counter[str] = Counter()
        prompts = [Prompt(f"p-{i}", [], "", "test") for i in range(num_prompts)]
        self.rollouts = RolloutGroup(RayWorkers([Worker(answer)], config, nodes=["here"]), prompts, config)
        self.config = config
        self.places: list[RunPlace] = []
        self.trained: list[int] = []

    def run(self, *, until: int | None = None) -> None:
        with Run.open(self.config, "tiny") as run:
            for step in run.steps(run.resume(NoActor(), self.rollouts)):
                if step == until:
                    return
                with run.step(step) as metrics:
                    groups = self.rollouts.take(8, metrics)
                    layout = packing_layout(self.config, num_data_parallel=1)
                    plan = plan_batch(groups, self.config, layout, metrics)
                    self.trained.append(len({row.source for row in plan.rows}))
                    self.places.append(run.place(step))
                    if run.is_save_due(step):
                        run.save(step + 1, NoActor(), self.rollouts)


@pytest.mark.parametrize(
    ("num_prompts", "one_in", "epochs", "trained"),
    [
        (80, 1, 1, [8] * 10),
        (84, 1, 1, [8] * 10 + [4]),  # a left-over is a last, smaller batch
        (80, 2, 1, [8] * 5),
        (80, 5, 1, [8, 8]),
        (90, 5, 1, [8, 8, 2]),  # 18 useful prompts
        (80, 2, 2, [8] * 10),
        (5, 1, 1, [5]),
    ],
)
def test_every_prompt_is_used_once_an_epoch_whatever_the_share_of_useful_ones(
    tmp_path: Path, num_prompts: int, one_in: int, epochs: int, trained: list[int]
) -> None:
    config = make_config(tmp_path, epochs=epochs)
    config.rl_config.filter_groups_enable = one_in > 1
    one = Epochs(config, num_prompts, one_in)
    one.run()
    assert set(one.used.values()) == {epochs} and len(one.used) == num_prompts
    assert [num for num in one.trained if num] == trained
    num_steps = len(one.trained)
    assert num_steps - len(trained) in (0, 1)  # the last prompts may all be useless
    assert one.places[-1] == RunPlace(num_steps - 1, num_steps)
    # From the first step on the schedule knows the run's length, as nearly as the shares are alike.
    assert all(abs(place.num_steps - num_steps) <= math.ceil(num_steps / 3) for place in one.places)


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = Epochs(make_config(tmp_path / "whole", epochs=1), 84, 2)
    whole.run()
    killed = Epochs(make_config(tmp_path, epochs=1), 84, 2)
    killed.run(until=3)
    config = make_config(tmp_path, epochs=1)
    config.megatron_training.run_name, config.megatron_training.resume = "second", str(tmp_path / "first")
    resumed = Epochs(config, 84, 2)
    resumed.run()
    assert killed.places[:2] + resumed.places == whole.places
    assert killed.trained[:2] + resumed.trained == whole.trained == [8, 8, 8, 8, 8, 2]


def test_train_iters_ends_a_run_before_its_epochs(tmp_path: Path) -> None:
    config = make_config(tmp_path, epochs=2)
    config.megatron_training.train_iters = 3
    one = Epochs(config, 80, 2)
    one.run()
    assert [place.num_steps for place in one.places] == [3, 3, 3]


def test_the_steps_shown_are_those_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Epochs(make_config(tmp_path, epochs=1), 80, 5)
    one.run()
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert shown == [f"{place.step + 1}/{place.num_steps}" for place in one.places]
    assert shown[-1] == f"{len(one.places)}/{len(one.places)}"
