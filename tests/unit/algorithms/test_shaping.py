import torch

from rl.algorithms.shaping import overlong_penalty


def test_overlong_penalty_worked_example():
    lengths = torch.tensor([10, 80, 85, 90, 100, 130])
    penalty = overlong_penalty(lengths, max_tokens=100, buffer=20, factor=1.0)
    torch.testing.assert_close(penalty, torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0]))


def test_overlong_penalty_scales_with_the_factor():
    lengths = torch.tensor([85, 90, 130])
    one = overlong_penalty(lengths, max_tokens=100, buffer=20, factor=1.0)
    torch.testing.assert_close(overlong_penalty(lengths, max_tokens=100, buffer=20, factor=0.4), 0.4 * one)


def test_overlong_penalty_without_buffer_is_a_step_after_the_limit():
    lengths = torch.tensor([99, 100, 101])
    assert overlong_penalty(lengths, max_tokens=100, buffer=0, factor=2.0).tolist() == [0.0, 0.0, -2.0]
