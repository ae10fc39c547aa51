"""Programs run, isolated, wherever the sandbox's interpreter is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from rl.services.sandbox.pool import SandboxPool

ROOT = Path(__file__).resolve().parents[4]
RUN = """
import asyncio, json, sys
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import parse_request
pool = SandboxPool(1, allow_network=False)
code = "import os, tempfile; open(tempfile.mkstemp()[1], 'w').write('x'); print(6 * 7)"
outcome = asyncio.run(pool.run(parse_request({"code": code, "language": "python"})))
print(json.dumps([pool.layers, outcome.stdout, outcome.stderr]))
pool.close()
"""


def test_pool_reaches_the_same_layers_with_an_interpreter_under_tmp(tmp_path: Path) -> None:
    venv.create(tmp_path / "environment", symlinks=True)
    found = subprocess.run(
        [tmp_path / "environment/bin/python", "-c", RUN],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{sysconfig.get_paths()['purelib']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    layers, stdout, stderr = json.loads(found.stdout)
    assert (stdout, stderr) == ("42\n", "")
    here = SandboxPool(1, allow_network=False)
    try:
        assert layers == here.layers, sys.prefix
    finally:
        here.close()
