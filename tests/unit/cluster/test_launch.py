from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.cluster import launch as module
from rl.cluster.endings import terminated_like_interrupted
from rl.cluster.launch import _ray
from rl.config.schema import Config
from rl.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The handlers of the tests, after those of a run that ends."""
    with terminated_like_interrupted():
        yield


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_ray_address_where_nothing_listens_is_told_at_once(scheme: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = Config()
    config.rl_config.ray_address = f"{scheme}127.0.0.1:{port}"
    with (
        pytest.raises(ConfigError, match=r"rl_config.ray_address: no Ray cluster answers there, .*refused"),
        _ray(config, tmp_path, tmp_path),
    ):
        pass


def test_a_failure_is_told_though_the_logs_of_ray_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_connect", lambda address, folder: None)
    (tmp_path / "session_1_2" / "logs").mkdir(parents=True)
    (tmp_path / "session_1_2" / "logs" / "raylet.out").touch()
    no_folder = tmp_path / "file"
    no_folder.touch()
    with pytest.raises(CheckpointError, match="the disk is full"), _ray(Config(), tmp_path, no_folder):
        raise CheckpointError("the disk is full")


def test_a_second_interrupt_does_not_stop_the_clean_up_of_a_ray_that_was_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def interrupted(address: str | None, folder: Path) -> None:
        raise KeyboardInterrupt

    def end_processes(processes: list[object]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(processes)

    monkeypatch.setattr(module, "_connect", interrupted)
    monkeypatch.setattr(module, "end_processes", end_processes)
    with pytest.raises(KeyboardInterrupt), _ray(Config(), tmp_path, tmp_path):
        pass
    assert ended == [[]]
