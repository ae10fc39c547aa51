import asyncio
import os
import time
from pathlib import Path

import pytest

from rl.errors import RewardError
from rl.rewards.registry import REWARDS, load_rewards
from rl.types import ToolStatus

OWN = """
import asyncio, os, time

def length(trajectory, *, scale=1.0):
    return {"score": scale * len(trajectory.turns), "pid": os.getpid()}

async def later(trajectory):
    await asyncio.sleep(0.01)
    return 2

async def never(trajectory):
    await asyncio.sleep(60)

def hangs(trajectory):
    if trajectory.prompt.ground_truth == "hang":
        while True: pass
    return os.getpid()

def raises(trajectory):
    raise KeyError("x")

def dies(trajectory):
    os._exit(3)

def prints(trajectory):
    print("noise")
    return 1

def text(trajectory): return "1"
def not_a_number(trajectory): return float("nan")
def too_large(trajectory): return 1e300
def no_score(trajectory): return {"acc": 1.0}
def nothing(trajectory): return None
def each_turn(trajectory):
    return {"score": 1.0, "turn_scores": [k + 1.0 for k, _ in enumerate(trajectory.turns)]}
def one_turn_short(trajectory): return {"score": 1.0, "turn_scores": [1.0]}
def turn_without_number(trajectory): return {"score": 1.0, "turn_scores": [1.0, None]}
constant = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return lambda name: f"{path}:{name}"


@pytest.fixture
def load():
    loaded = []

    def make(names, weights=None, kwargs=None, timeout=10.0):
        loaded.append(load_rewards(names, weights or [1.0] * len(names), kwargs, timeout))
        return loaded[-1]

    yield make
    for rewards in loaded:
        rewards.close()


async def test_score_is_the_weighted_sum(load, own, trajectory):
    scored = trajectory(r"\boxed{3}", "3")
    rewards = load(["base_acc", "format", own("later")], [1.0, 0.5, 0.25])
    await rewards.score(scored)
    assert scored.score == 1.0 * 1 + 0.5 * 1 + 0.25 * 2
    assert scored.rewards == {"base_acc": 1.0, "format": 1.0, own("later"): 2.0}
    assert scored.reward_error is None


async def test_own_reward_gets_its_arguments_and_a_process_of_its_own(load, own, trajectory):
    name = own("length")
    first, second = trajectory("a", "b"), trajectory("a", "b")
    rewards = load([name], kwargs={name: {"scale": 3.0}})
    await asyncio.gather(rewards.score(first), rewards.score(second))
    assert first.score == second.score == 3.0
    assert first.rewards[f"{name}/pid"] == second.rewards[f"{name}/pid"] != os.getpid()


async def test_scores_of_turns_are_weighted_and_summed(load, own, trajectory):
    scored = trajectory("a", "b", ToolStatus.OK)
    await load([own("each_turn"), own("later")], [0.5, 1.0]).score(scored)
    assert scored.turn_rewards == [0.5, 1.0]
    assert (scored.score, scored.rewards) == (2.5, {own("each_turn"): 1.0, own("later"): 2.0})


async def test_reward_by_module_path(load, trajectory):
    scored = trajectory(r"\boxed{3}", "3")
    rewards = load(["rl.rewards.rules:base_acc"])
    await rewards.score(scored)
    assert scored.score == 1.0


async def test_every_registered_reward_scores(load, trajectory):
    names = sorted(set(REWARDS) - {"reasoning_gym"})
    scored = trajectory(r"\boxed{3}", "3")
    await load(names).score(scored)
    assert scored.reward_error is None
    assert set(names) <= set(scored.rewards)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("raises", "KeyError: 'x'"),
        ("dies", "its process died"),
        ("text", "returned '1' as score, not a finite number"),
        ("not_a_number", "returned nan as score"),
        ("too_large", "returned 1e+300 as score, not a finite number"),
        ("no_score", "returned a dict without 'score', with acc"),
        ("nothing", "returned None as score"),
        ("one_turn_short", "returned [1.0] as turn_scores, not a list with a number for each of the 2 turns"),
        ("turn_without_number", "returned None as turn_scores, not a finite number"),
    ],
)
async def test_a_failing_reward_masks_the_trajectory_and_says_why(load, own, trajectory, function, part):
    scored = trajectory(r"\boxed{3}", "3", ToolStatus.OK)
    await load(["base_acc", own(function)]).score(scored)
    assert scored.score is None
    assert scored.rewards == {"base_acc": 1.0}
    assert scored.reward_error.startswith(own(function))
    assert part in scored.reward_error


async def test_a_hanging_reward_is_killed_and_replaced(load, own, trajectory):
    rewards = load([own("hangs")], timeout=0.5)
    before, hanging, after = trajectory("a", "b"), trajectory("a", "hang"), trajectory("a", "b")
    await rewards.score(before)
    start = time.monotonic()
    await rewards.score(hanging)
    assert time.monotonic() - start < 5
    assert (hanging.score, hanging.reward_error) == (None, f"{own('hangs')}: no score within 0.5 s")
    await rewards.score(after)
    assert before.score != after.score
    assert not Path(f"/proc/{int(before.score)}").exists()


async def test_an_async_reward_past_its_deadline_is_cancelled(load, own, trajectory):
    scored = trajectory("a", "b")
    await load([own("never")], timeout=0.1).score(scored)
    assert scored.reward_error == f"{own('never')}: no score within 0.1 s"


async def test_a_sympy_answer_that_never_ends_is_cut_off(load, trajectory):
    scored = trajectory(r"\boxed{9^{9^{9^9}}}", "3")
    rewards = load(["math_acc"], timeout=2.0)
    await rewards.score(scored)
    assert scored.reward_error == "math_acc: no score within 2 s"


async def test_a_reward_may_print(load, own, trajectory):
    scored = trajectory("a", "b")
    await load([own("prints")]).score(scored)
    assert scored.score == 1.0


@pytest.mark.parametrize(
    ("names", "weights", "kwargs", "message"),
    [
        (["base_ac"], [1.0], {}, "Did you mean 'base_acc'"),
        ([], [], {}, "needs a reward, got none"),
        (["base_acc"], [1.0, 2.0], {}, "a weight for each of the 1 rewards, got 2"),
        (["base_acc", "base_acc"], [1.0, 1.0], {}, "names must differ"),
        (["base_acc"], [float("nan")], {}, "must be a number, got nan"),
        (["retool_reward"], [1.0], {"retool_reward": {"tol_bonus": 1}}, "Did you mean 'tool_bonus'"),
        (["base_acc"], [1.0], {"base_ac": {}}, "Did you mean 'base_acc'"),
        (["rl.rewards.nowhere:x"], [1.0], {}, "does not import: ModuleNotFoundError: No module named"),
        (["rl.rewards.rules:x"], [1.0], {}, "has no attribute 'x'"),
        (["nowhere.py:x"], [1.0], {}, "does not import: ImportError: no file"),
    ],
)
def test_load_rewards_says_what_is_wrong(names, weights, kwargs, message):
    with pytest.raises(RewardError) as error:
        load_rewards(names, weights, kwargs, 1.0)
    assert message in str(error.value)
    assert str(error.value).startswith("rl_config.verifier_")


def test_load_rewards_refuses_what_is_no_function(own):
    with pytest.raises(RewardError, match="is not a function, got int"):
        load_rewards([own("constant")], [1.0], {}, 1.0)
