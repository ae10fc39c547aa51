"""One service for all clients, and a table of what each of them trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import ended
from tests.e2e.conftest import cold_started as cold_started
from tests.e2e.conftest import workspace as workspace
from tests.e2e.service import address_of, serve

REPORT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def address(workspace: Path, cold_started: Path) -> Iterator[str]:
    """A service that trains a model which often calls the tool; its run is named `clients`."""
    process = serve(
        workspace, "clients", f"actor_config.load={cold_started}", "actor_config.lr=1e-5",
        "megatron_training.save_interval=100", "rl_config.max_total_response_length=900",
        "rl_config.max_packing_token_size=2048", "generate_config.max_model_len=1536",
        "generate_config.max_num_batched_tokens=1536",
    )  # fmt: skip
    with ended(process):
        found = address_of(process)
        assert process.stdout is not None
        threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it can go on to write
        yield found


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are shown at the end."""
    return request.config.stash.setdefault(REPORT, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(REPORT, []):
        terminalreporter.section("what was trained")
        for line in lines:
            terminalreporter.write_line(line)
