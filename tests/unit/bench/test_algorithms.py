from __future__ import annotations

from rl.algorithms.advantages import ADVANTAGES
from rl.algorithms.losses import LOSSES
from tools.bench.algorithms import ALGORITHMS, Algorithm, measure


def test_every_advantage_and_loss_is_measured() -> None:
    settings = [algorithm.settings for algorithm in ALGORITHMS]
    assert {s.get("adv_estimator", "group_norm") for s in settings} == set(ADVANTAGES)
    assert {s.get("policy_loss", "clip") for s in settings} == set(LOSSES) - {"sft"}


def test_measure_gives_the_mean_reward_of_the_last_steps() -> None:
    """A random model is right in one of 16, and cannot have learned the game in two steps."""
    (figure,) = measure((Algorithm("grpo"),), num_steps=2)
    assert figure.name == "algorithms / grpo"
    assert 0.0 < figure.value < 0.2
    assert figure.is_reached is False
    assert figure.detail.endswith("; not reached")
