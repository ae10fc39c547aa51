"""`rl doctor` with the real engine and a real sandbox."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.commands import finish, start


def test_doctor_generates_two_tokens_and_compares_their_logprobs(workspace: Path) -> None:
    told = finish(start("doctor", workspace, "healthy"))
    found = re.search(r"ok   two tokens: .* log-probs of engine and actor differ by at most (\S+)", told)
    assert found and float(found[1]) < 1e-4, told
    assert "ok   embedded services: code_interpreter: started, answered and stopped" in told
    assert "0 failures" in told
    assert not (workspace / "runs" / "healthy").exists()
