from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from rl.errors import ToolError
from rl.tools.base import ToolConfig
from rl.tools.settings import read_settings


@dataclass
class OwnConfig(ToolConfig):
    folder: Path = Path("data")
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)


def test_settings_of_a_derived_class_are_converted_from_yaml() -> None:
    config = read_settings("t", OwnConfig, {"folder": "x/y", "mode": "exact", "sizes": [1, 2], "limits": {"a": 1}})
    assert (config.folder, config.mode, config.sizes, config.limits) == (Path("x/y"), "exact", (1, 2), {"a": 1.0})
    assert (config.default_timeout, config.num_workers) == (30.0, 10)


def test_overrides_replace_what_the_yaml_says() -> None:
    assert read_settings("t", ToolConfig, {"timeout": 3}, {"default_timeout": 5}).default_timeout == 5.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "slow"}, "t.mode: must be 'fast' or 'exact', got 'slow'. Correct it."),
        ({"sizes": [1, "2"]}, "t.sizes.1: must be a valid integer, got '2'. Correct it."),
        ({"num_workers": 2.5}, "t.num_workers: must be a valid integer, got 2.5. Correct it."),
        ({"num_workers": True}, "t.num_workers: must be a valid integer, got True. Correct it."),
        ({"default_timeout": float("nan")}, "t.default_timeout: must be greater than 0, got nan. Correct it."),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ToolError) as error:
        read_settings("t", OwnConfig, values)
    assert str(error.value) == message
