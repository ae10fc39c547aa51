"""Token ids of runs with tools are those recorded before environments and the ledger's `extend` came."""

from __future__ import annotations

import json

import pytest

from tests.unit.rollout.recorded_runs import CASES, FILE, Case, to_record

RECORDED = json.loads(FILE.read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_with_tools_gives_the_token_ids_that_were_recorded(case: Case):
    assert json.loads(json.dumps(to_record(case))) == RECORDED[case.name]
