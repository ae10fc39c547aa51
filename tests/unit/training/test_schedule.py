"""The learning rate depends on the step of the run only, not on the data of the steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MicroBatch, RunPlace
from rl.config.schema import Config, LrDecayStyle
from rl.training.actor import Actor
from tests.tiny import make_tiny_model
from tests.update_case import update_config, update_samples, with_logprobs


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", num_layers=1)


def scheduled(model_folder: Path, style: LrDecayStyle, warmup: float) -> Config:
    return update_config(model_folder, lr=1.0e-2, min_lr=2.0e-3, lr_decay_style=style, lr_warmup_fraction=warmup)


def micro_batches(config: Config) -> list[MicroBatch]:
    (mini_batch,) = pack_samples(update_samples()[:2], packing_layout(config, num_data_parallel=1)).mini_batches
    return with_logprobs(mini_batch).micro_batches[0]


def rates(actor: Actor, steps: list[int], num_steps: int) -> list[float]:
    micros = micro_batches(actor.config)
    return [actor.update(micros, place=RunPlace(step, num_steps))["actor/lr"] for step in steps]


STEPS = [0, 4, 5, 10, 10, 15, 20]
"""Some of 21 steps; step 10 has two mini-batches. With a warm-up of 1/4, 21 / 4 = 5.25, so 5 steps are warm-up."""
EXPECTED = {
    LrDecayStyle.CONSTANT: [1e-2 / 6, 5e-2 / 6, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2],
    # 15 steps from 5 to 20: after a third and two thirds of the way 8e-3 x 2/3 and 1/3 above 2e-3.
    LrDecayStyle.LINEAR: [1e-2 / 6, 5e-2 / 6, 1e-2, 22e-3 / 3, 22e-3 / 3, 14e-3 / 3, 2e-3],
    # (1 + cos 60 degrees) / 2 = 3/4 and (1 + cos 120 degrees) / 2 = 1/4 of 8e-3 above 2e-3.
    LrDecayStyle.COSINE: [1e-2 / 6, 5e-2 / 6, 1e-2, 8e-3, 8e-3, 4e-3, 2e-3],
}


@pytest.mark.parametrize("style", LrDecayStyle)
def test_learning_rate_is_that_of_the_runs_step(model_folder: Path, style: LrDecayStyle):
    with Actor(scheduled(model_folder, style, 0.25)) as actor:
        assert rates(actor, STEPS, 21) == pytest.approx(EXPECTED[style])


def test_learning_rate_of_a_resumed_run_goes_on_at_its_step(model_folder: Path, tmp_path: Path):
    config = scheduled(model_folder, LrDecayStyle.COSINE, 0.25)
    with Actor(config) as actor:
        rates(actor, STEPS[:4], 21)
        actor.save_checkpoint(tmp_path / "checkpoint")
    with Actor(config) as actor:
        actor.load_checkpoint(tmp_path / "checkpoint")
        assert rates(actor, STEPS[4:], 21) == pytest.approx(EXPECTED[LrDecayStyle.COSINE][4:])


def test_learning_rate_follows_a_run_whose_length_turns_out_otherwise(model_folder: Path):
    """Dynamic sampling with `total_epochs`: the last step has the lowest rate, even if the estimated length changed."""
    with Actor(scheduled(model_folder, LrDecayStyle.LINEAR, 0.0)) as actor:
        micros = micro_batches(actor.config)
        places = [RunPlace(0, 21), RunPlace(5, 11), RunPlace(6, 13), RunPlace(8, 9)]
        found = [actor.update(micros, place=place)["actor/lr"] for place in places]
    assert found == pytest.approx([1e-2, 6e-3, 6e-3, 2e-3])


@pytest.mark.parametrize(
    ("warmup", "num_steps", "expected"),
    [
        (0.0, 1, [1e-2]),  # the only step of a run has the full rate
        (0.0, 2, [1e-2, 2e-3]),
        (1.0, 3, [2.5e-3, 5e-3, 7.5e-3]),
        (0.29, 100, [1e-2 / 30]),  # 29 steps of warm-up, though 0.29 x 100 is a little less in binary
    ],
)
def test_learning_rate_at_the_ends_of_its_ranges(
    model_folder: Path, warmup: float, num_steps: int, expected: list[float]
):
    with Actor(scheduled(model_folder, LrDecayStyle.COSINE, warmup)) as actor:
        assert rates(actor, list(range(len(expected))), num_steps) == pytest.approx(expected)
