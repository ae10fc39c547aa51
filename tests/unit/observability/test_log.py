from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from rl.observability.log import setup_logging


def test_terminal_shows_the_project_and_the_errors_of_libraries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        setup_logging(tmp_path / "driver.log")
        logging.getLogger("rl.train").info("ours")
        logging.getLogger("vllm.x").warning("theirs")
        logging.getLogger("vllm.x").error("broken")
        warnings.warn("outdated", UserWarning, stacklevel=1)
    shown = capsys.readouterr().err
    assert "ours" in shown
    assert "broken" in shown
    assert "theirs" not in shown
    assert "outdated" not in shown
    kept = (tmp_path / "driver.log").read_text()
    assert all(word in kept for word in ("ours", "theirs", "broken", "outdated"))
