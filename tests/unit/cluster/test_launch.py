from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rl.cluster.launch import _ray
from rl.config.schema import Config
from rl.errors import ConfigError


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
