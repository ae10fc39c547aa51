from rl.inference.fake import FakeEngine
from rl.types import Prompt, Sampling
from tools.bench.driver import InstantLoop, Sizes, Stages, _read_sizes


def test_sizes_are_taken_out_of_the_overrides():
    sizes, others = _read_sizes(["num_prompts=64", "rl_config.epochs=2", "length=1024"])
    assert sizes == Sizes(num_prompts=64, length=1024)
    assert others == ["rl_config.epochs=2"]


def test_time_of_an_inner_stage_does_not_count_for_the_outer_one(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0])  # the outer one lasts from 0 to 10, the inner one from 1 to 4
    monkeypatch.setattr("tools.bench.driver.time.monotonic", lambda: next(clock))
    stages = Stages()
    with stages.time("outer"), stages.time("inner"):
        pass
    assert stages.wall == {"inner": 3.0, "outer": 7.0}


async def test_trajectories_come_from_the_seed_and_half_of_a_group_is_right():
    loop = InstantLoop(FakeEngine(lambda ids: []), 800)
    prompt, sampling = Prompt("bench-3", [], "1", "bench", {"number": 3}), Sampling(1.0, 1)
    first, second, again = [await loop.run(prompt, index, sampling) for index in (0, 1, 0)]
    assert list(first.sequences[0].token_ids) == list(again.sequences[0].token_ids)
    assert list(first.sequences[0].token_ids[:100]) == list(second.sequences[0].token_ids[:100])  # the prompt
    assert list(first.sequences[0].token_ids[100:]) != list(second.sequences[0].token_ids[100:])
    assert (first.response_text[-9:], second.response_text[-9:]) == ("\\boxed{0}", "\\boxed{1}")
