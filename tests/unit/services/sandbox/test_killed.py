"""A killed server leaves no processes and no tracebacks, and the next server removes its folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.services.sandbox.pool import SandboxPool

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = """
import asyncio, os, signal
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import parse_request

async def main():
    pool = SandboxPool(2, preload=("colorsys",))
    for code in {codes}:
        asyncio.create_task(pool.run(parse_request({{"code": code, "language": "python"}})))
    await asyncio.sleep({seconds})
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("codes", "seconds"),
    [([], 0), (["while True: pass", "import colorsys, time; time.sleep(60)"], 0.3)],
    ids=["at its start", "with programs"],
)
def test_killed_server_leaves_no_process_no_traceback_and_no_folder(tmp_path, monkeypatch, codes, seconds):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(codes=codes, seconds=seconds)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=40,  # the pipes are closed when the last of its processes is gone
    )
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "")
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool = SandboxPool(1, preload=())
    pool.close()
    assert not left.exists()
    assert list(tmp_path.iterdir()) == []
