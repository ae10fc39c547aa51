from __future__ import annotations

import pytest
import torch

from rl.config.schema import Device
from rl.errors import ConfigError
from rl.training.device import setup_device


def test_setup_device_on_cpu_sets_threads() -> None:
    before = torch.get_num_threads()
    assert setup_device(Device.CPU, num_threads=1) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_setup_device_without_cuda() -> None:
    assert setup_device(Device.AUTO) == torch.device("cpu")
    with pytest.raises(ConfigError, match="there is no CUDA device"):
        setup_device(Device.CUDA)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_setup_device_points_megatron_at_the_cpu() -> None:
    setup_device(Device.CPU)
    from megatron.core.pipeline_parallel import schedules

    assert schedules.torch.zeros([], device="cuda").device == torch.device("cpu")
    assert schedules.torch.cuda.current_device() == "cpu"
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type(torch.int64).dtype == torch.int64
