from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.config.schema import Device
from rl.training.device import setup_device
from rl.training.parallel import ParallelState, destroy_parallel, init_parallel


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParallelState]:
    """A process group with only this process, on the CPU."""
    meeting: Path = tmp_path_factory.mktemp("group") / "store"
    device = setup_device(Device.CPU)
    yield init_parallel(rank=0, world_size=1, tp=1, pp=1, init_method=f"file://{meeting}", device=device)
    destroy_parallel()
