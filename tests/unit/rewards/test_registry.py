import asyncio
import gc
import os
import sys
import time
from pathlib import Path

import pytest

from rl.config.schema import Config
from rl.errors import RewardError
from rl.rewards.registry import REWARDS, load_rewards
from rl.types import ToolStatus

OWN = """
import asyncio, bdb, os, time

def length(trajectory, *, scale=1.0):
    return {"score": scale * len(trajectory.turns), "pid": os.getpid()}

async def later(trajectory):
    await asyncio.sleep(0.01)
    return 2

async def never(trajectory):
    await asyncio.sleep(60)

async def fails_when_cancelled(trajectory):
    try:
        await asyncio.sleep(60)
    finally:
        raise ValueError("too late")

def decorated(trajectory):
    return later(trajectory)

def hangs(trajectory):
    if trajectory.prompt.ground_truth == "hang":
        while True: pass
    return os.getpid()

def raises(trajectory):
    raise KeyError("x")

def slow(trajectory):
    time.sleep(0.05)
    return os.getpid()

def quits(trajectory):
    raise bdb.BdbQuit

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

    def make(names, weights=None, kwargs=None, timeout=10.0, num_processes=1):
        loaded.append(load_rewards(names, weights or [1.0] * len(names), kwargs, timeout, num_processes))
        return loaded[-1]

    yield make
    for rewards in loaded:
        rewards.close()


async def test_score_is_the_weighted_sum(load, own, trajectory):
    scored = trajectory(r"\boxed{3}", "3")
    rewards = load(["base_acc", "format", own("later")], [1.0, 0.5, 0.25])
    scored.take_scores(await rewards.score(scored))
    assert scored.score == 1.0 * 1 + 0.5 * 1 + 0.25 * 2
    assert scored.rewards == {"base_acc": 1.0, "format": 1.0, own("later"): 2.0}
    assert scored.reward_error is None


async def test_user_reward_gets_its_arguments_and_its_own_process(load, own, trajectory):
    name = own("length")
    first, second = trajectory("a", "b"), trajectory("a", "b")
    rewards = load([name], kwargs={name: {"scale": 3.0}})
    for one, scores in zip(
        (first, second), await asyncio.gather(rewards.score(first), rewards.score(second)), strict=True
    ):
        one.take_scores(scores)
    assert first.score == second.score == 3.0
    assert first.rewards[f"{name}/pid"] == second.rewards[f"{name}/pid"] != os.getpid()


RETURNED = """
import decimal, fractions, types
import numpy as np
import torch

VALUES = {
    "np.float32": np.float32(0.5), "np.int64": np.int64(3), "np.bool": np.bool_(True), "np.float16": np.float16(0.5),
    "array": np.array(0.5), "array1": np.array([0.5]), "tensor": torch.tensor(0.5), "tensor1": torch.tensor([0.5]),
    "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16), "bool": True, "fraction": fractions.Fraction(1, 2),
    "decimal": decimal.Decimal("0.5"), "int": 3, "mapping": types.MappingProxyType({"score": np.float64(0.5)}),
    "verl": {"score": 1.0, "acc": True, "pred": "42"},
    "extra": {"score": np.float32(2), "n": np.int32(3), "none": None, "list": [1, "a"], 7: 0.5,
              "deep": {"a": {"b": np.int8(1)}}, "array": np.zeros(2), "surrogate": "\\ud800"},
    "turns": {"score": 1.0, "turn_scores": np.array([0.5])},
    "nan": np.float32("nan"), "text": "1", "arrays": np.zeros(2), "huge": 10**400, "set": {1}, "bad": {"score": "a"},
    "bad_turns": {"score": 1.0, "turn_scores": "1"}, "inf": {"score": 1.0, "acc": float("inf")},
    "function": lambda: 1,
}

def isolated(trajectory): return VALUES[trajectory.prompt.ground_truth]
async def here(trajectory): return VALUES[trajectory.prompt.ground_truth]
"""


@pytest.fixture(scope="module")
def returning(tmp_path_factory):
    """Two rewards that return the value named by the ground truth: one in its own process, one on the event loop."""
    path = tmp_path_factory.mktemp("returning") / "returned.py"
    path.write_text(RETURNED)
    loaded = [load_rewards([f"{path}:{name}"], [1.0], {}, 60.0, 1) for name in ("isolated", "here")]
    assert [rewards.rewards[0].isolate for rewards in loaded] == [True, False]
    yield loaded
    for rewards in loaded:
        rewards.close()


async def test_numbers_of_every_library_arrive(returning, trajectory):
    for name in ("np.float32", "np.float16", "array", "array1", "tensor", "tensor1", "bfloat16", "fraction", "decimal"):
        for rewards in returning:
            scored = trajectory("a", name)
            scored.take_scores(await rewards.score(scored))
            assert (name, scored.score, scored.reward_error) == (name, 0.5, None)
            assert type(scored.score) is float
    for name, score in (("np.int64", 3.0), ("np.bool", 1.0), ("bool", 1.0), ("int", 3.0), ("mapping", 0.5)):
        for rewards in returning:
            scored = trajectory("a", name)
            scored.take_scores(await rewards.score(scored))
            assert (name, scored.score, scored.reward_error) == (name, score, None)


async def test_other_values_than_numbers_become_texts(returning, trajectory):
    for rewards in returning:
        name = rewards.rewards[0].name
        scored = trajectory("a", "verl")
        scored.take_scores(await rewards.score(scored))
        assert scored.rewards == {name: 1.0, f"{name}/acc": 1.0}
        assert scored.reward_texts == {f"{name}/pred": "42"}
        scored = trajectory("a", "extra")
        scored.take_scores(await rewards.score(scored))
        assert scored.rewards == {name: 2.0, f"{name}/n": 3.0, f"{name}/7": 0.5}
        texts = {
            "none": "null",
            "list": '[1, "a"]',
            "deep": '{"a": {"b": "1"}}',
            "array": '"[0. 0.]"',
            "surrogate": "?",
        }
        assert scored.reward_texts == {f"{name}/{key}": text for key, text in texts.items()}
        scored = trajectory("a", "turns")
        scored.take_scores(await rewards.score(scored))
        assert (scored.score, scored.turn_rewards) == (1.0, [0.5])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nan", "as score, not a finite number"),
        ("text", "returned '1' as score"),
        ("arrays", "returned array([0., 0.]) as score"),
        ("huge", "as score, not a finite number"),
        ("set", "returned {1} as score"),
        ("bad", "returned 'a' as score"),
        ("bad_turns", "returned '1' as turn_scores, not a list with a number for each of the 1 turns"),
        ("inf", "returned inf as acc, not a finite number"),
        ("function", "as score, not a finite number"),
        ("missing", "KeyError: 'missing'"),
    ],
)
async def test_invalid_scores_are_reported(returning, trajectory, name, problem):
    for rewards in returning:
        scored = trajectory("a", name)
        scored.take_scores(await rewards.score(scored))
        assert (scored.score, scored.reward_error.startswith(rewards.rewards[0].name)) == (None, True)
        assert problem in scored.reward_error


async def test_arguments_arrive_as_they_are(load, tmp_path, trajectory):
    path = tmp_path / "arguments.py"
    path.write_text("def sees(trajectory, *, table): return {'score': 1.0, 'table': repr(table)}\n")
    name, table = f"{path}:sees", {1: (2, 3), None: float("inf")}
    scored = trajectory("a", "b")
    scored.take_scores(await load([name], kwargs={name: {"table": table}}).score(scored))
    assert scored.reward_texts == {f"{name}/table": repr(table)}


async def test_reward_files_import_modules_from_their_folder(load, tmp_path, trajectory, monkeypatch):
    """Two folders with a module of the same name next to the reward, and a package."""
    names = []
    for folder in ("one", "two"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner/__init__.py").write_text("")
        (tmp_path / folder / "inner/deep.py").write_text("def zero(): return 0\n")
        (tmp_path / folder / "my_neighbour.py").write_text(
            f"def score(): return len('{folder}') * ('{folder}' == 'two')\n"
        )
        text = "import my_neighbour\nfrom inner.deep import zero\n"
        text += f"def {folder}(trajectory): return my_neighbour.score() + zero()\n"
        text += f"async def {folder}_here(trajectory): return my_neighbour.score()\n"
        (tmp_path / folder / "reward.py").write_text(text)
        names += [f"{folder}/reward.py:{folder}", f"{folder}/reward.py:{folder}_here"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    scored = trajectory("a", "b")
    scored.take_scores(await load(names).score(scored))
    assert (scored.reward_error, list(scored.rewards.values())) == (None, [0.0, 0.0, 3.0, 3.0])


async def test_a_file_that_exits_its_process_is_reported(load, tmp_path, trajectory):
    path = tmp_path / "ends.py"
    path.write_text("import os, sys\nif 'pytest' not in sys.modules: os._exit(3)\ndef f(trajectory): return 1\n")
    scored = trajectory("a", "b")
    scored.take_scores(await load([f"{path}:f"]).score(scored))
    assert scored.reward_error == f"{path}:f: its process died while it imported the function"


async def test_hanging_calls_do_not_block_others(load, own, trajectory):
    """Six calls that hang until the deadline, then three good ones: more calls than slots."""
    rewards = load([own("hangs")], timeout=60.0, num_processes=Config().rl_config.verifier_parallel)
    hanging = [asyncio.ensure_future(rewards.score(trajectory("a", "hang"))) for _ in range(6)]
    await asyncio.sleep(0)  # they take the places first
    good = [trajectory("a", "b") for _ in range(3)]
    scores = await asyncio.wait_for(asyncio.gather(*(rewards.score(one) for one in good)), 55.0)
    assert all(one.score is not None for one in scores)
    assert not any(task.done() for task in hanging)
    rewards.close()
    await asyncio.gather(*hanging)


async def test_scores_of_turns_are_weighted_and_summed(load, own, trajectory):
    scored = trajectory("a", "b", ToolStatus.OK)
    scored.take_scores(await load([own("each_turn"), own("later")], [0.5, 1.0]).score(scored))
    assert scored.turn_rewards == [0.5, 1.0]
    assert (scored.score, scored.rewards) == (2.5, {own("each_turn"): 1.0, own("later"): 2.0})


async def test_reward_by_module_path(load, trajectory):
    scored = trajectory(r"\boxed{3}", "3")
    rewards = load(["rl.rewards.rules:base_acc"])
    scored.take_scores(await rewards.score(scored))
    assert scored.score == 1.0


async def test_every_registered_reward_scores(load, trajectory):
    names = sorted(set(REWARDS) - {"reasoning_gym"})
    scored = trajectory(r"\boxed{3}", "3")
    scored.environment = {"score": 1.0}
    scored.take_scores(await load(names).score(scored))
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
async def test_a_failing_reward_masks_the_trajectory_and_records_the_error(load, own, trajectory, function, part):
    scored = trajectory(r"\boxed{3}", "3", ToolStatus.OK)
    scored.take_scores(await load(["base_acc", own(function)]).score(scored))
    assert scored.score is None
    assert scored.rewards == {"base_acc": 1.0}
    assert scored.reward_error.startswith(own(function))
    assert part in scored.reward_error


async def test_a_hanging_reward_is_killed_and_replaced(load, own, trajectory):
    rewards = load([own("hangs")], timeout=0.5)
    before, hanging, after = trajectory("a", "b"), trajectory("a", "hang"), trajectory("a", "b")
    before.take_scores(await rewards.score(before))
    start = time.monotonic()
    hanging.take_scores(await rewards.score(hanging))
    assert time.monotonic() - start < 5
    assert (hanging.score, hanging.reward_error) == (None, f"{own('hangs')}: no score within 0.5 s")
    after.take_scores(await rewards.score(after))
    assert before.score != after.score
    assert not Path(f"/proc/{int(before.score)}").exists()


async def test_an_async_reward_past_its_deadline_is_cancelled(load, own, trajectory):
    scored = trajectory("a", "b")
    scored.take_scores(await load([own("never")], timeout=0.1).score(scored))
    assert scored.reward_error == f"{own('never')}: no score within 0.1 s"


async def test_a_sympy_answer_that_never_ends_is_cut_off(load, trajectory):
    scored = trajectory(r"\boxed{9^{9^{9^9}}}", "3")
    rewards = load(["math_acc"], timeout=2.0)
    scored.take_scores(await rewards.score(scored))
    assert scored.reward_error == "math_acc: no score within 2 s"


async def test_a_reward_may_print(load, own, trajectory):
    scored = trajectory("a", "b")
    scored.take_scores(await load([own("prints")]).score(scored))
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
        (["nowhere.py:x"], [1.0], {}, "nor one of this name beside the configuration"),
        (["base_acc"], [1.0], {"rl.rewards.rules:base_ac": {}, "math_ac": {}}, "unknown name 'math_ac'"),
        (["a.py:short"], [1.0], {"a.py:shrt": {}}, "Did you mean 'a.py:short'"),
    ],
)
def test_load_rewards_reports_errors(names, weights, kwargs, message):
    with pytest.raises(RewardError) as error:
        load_rewards(names, weights, kwargs, 1.0)
    assert message in str(error.value)
    assert str(error.value).startswith("rl_config.verifier_")


def test_load_rewards_ignores_arguments_of_other_rewards(own):
    inherited = {"reasoning_gym": {"min_score": 0.9}, "elsewhere/other.py:f": {"n": 1}}
    (reward,) = load_rewards([own("length")], [1.0], {**inherited, own("length"): {"scale": 2.0}}).rewards
    assert reward.kwargs == {"scale": 2.0}


@pytest.mark.parametrize(
    ("definition", "kwargs", "problem"),
    [
        ("def f(): return 1", {}, "got () and the arguments none: too many positional arguments."),
        ("def f(trajectory, limit): return 1", {}, "missing a required argument: 'limit'."),
        ("def f(trajectory, *, limit): return 1", {}, "missing a required"),
        ("def f(*, trajectory): return 1", {}, "too many positional arguments."),
        ("async def f(): return 1", {}, "too many positional arguments."),
        ("def f(a, b, c=1): return 1", {"c": 2}, "missing a required argument: 'b'."),
        ("def f(trajectory, **kwargs): return 1", {"trajectory": 2}, "multiple values for argument 'trajectory'."),
        ("class f:\n    def __init__(self, trajectory): pass", {}, "is not a function, got a class."),
    ],
)
def test_load_rewards_rejects_a_function_that_cannot_be_called(tmp_path, definition, kwargs, problem):
    path = tmp_path / "signature.py"
    path.write_text(definition)
    with pytest.raises(RewardError) as error:
        load_rewards([f"{path}:f"], [1.0], {f"{path}:f": kwargs})
    assert problem in str(error.value)
    assert str(error.value).startswith(f"rl_config.verifier_function: '{path}:f' ")


@pytest.mark.parametrize(
    ("definition", "kwargs"),
    [
        ("def f(trajectory): return 1", {}),
        ("def f(*args): return 1", {}),
        ("def f(trajectory, limit): return 1", {"limit": 3}),
        ("def f(trajectory, **kwargs): return 1", {"anything": 3}),
        ("class C:\n    async def __call__(self, trajectory): return 1\nf = C()", {}),
    ],
)
async def test_load_rewards_accepts_functions_that_can_be_called(tmp_path, trajectory, definition, kwargs):
    path = tmp_path / "signature.py"
    path.write_text(definition)
    rewards = load_rewards([f"{path}:f"], [1.0], {f"{path}:f": kwargs})
    scored = trajectory("a", "b")
    scored.take_scores(await rewards.score(scored))
    rewards.close()
    assert (scored.score, scored.reward_error) == (1.0, None)


def test_load_rewards_rejects_values_that_are_not_functions(own):
    with pytest.raises(RewardError, match="is not a function, got int"):
        load_rewards([own("constant")], [1.0], {}, 1.0)


async def test_an_exception_after_the_deadline_is_not_printed(load, own, trajectory):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
    scored = trajectory("1", "x")
    scored.take_scores(await load([own("fails_when_cancelled")], timeout=0.1).score(scored))
    assert scored.reward_error == f"{own('fails_when_cancelled')}: no score within 0.1 s"
    await asyncio.sleep(0)
    gc.collect()
    assert told == []


async def test_a_plain_function_may_return_a_coroutine(load, own, trajectory):
    scored = trajectory("1", "x")
    scored.take_scores(await load([own("decorated")]).score(scored))
    assert (scored.score, scored.reward_error) == (2.0, None)


async def test_rewards_in_the_caller_run_in_its_process_without_a_deadline(own, trajectory):
    rewards = load_rewards([own("slow"), own("raises")], [1, 1], timeout=0.01, in_caller=True)
    scores = await rewards.score(trajectory("one", "1"))
    assert scores.rewards == {own("slow"): os.getpid()}
    assert scores.reward_error == f"{own('raises')}: KeyError: 'x'"


def test_leaving_a_debugger_in_a_reward_ends_the_run(own, trajectory):
    with pytest.raises(KeyboardInterrupt), asyncio.Runner() as runner:
        runner.run(load_rewards([own("quits")], [1], in_caller=True).score(trajectory("one", "1")))
