import asyncio
import os
import subprocess
import sys
from pathlib import Path

from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import parse_request

ROOT = Path(__file__).resolve().parents[4]
DRAW = {
    "random": "import random; print(random.getrandbits(64))",
    "sympy": "import sympy; print(sympy.core.random.rng.getrandbits(64), sympy.core.random.random())",
    "sympy's primes": "import sympy; print(sympy.randprime(1, 10 ** 12))",
    "sympy's assumptions": "import sympy.core.random as r; print(r._assumptions_rng.getrandbits(64))",
    "numpy": "import numpy; print(numpy.random.random(), numpy.random.randn())",
    "scipy": "import scipy.stats; print(scipy.stats.norm.rvs())",
    "multiprocessing": "import multiprocessing, numpy; print(bytes(multiprocessing.current_process().authkey))",
    "names of files": "import tempfile, numpy; print(next(tempfile._get_candidate_names()))",
    "uuid": "import uuid, numpy; print(uuid.uuid4())",
}
MADE = """
import random
import numpy
python, numpy, legacy = random.Random(), numpy.random.default_rng(), numpy.random.RandomState()
"""


def test_programs_draw_their_own_numbers_whatever_is_imported_ahead():
    async def draw():
        preload = ("numpy", "sympy", "scipy.stats", "multiprocessing", "uuid", "tempfile")
        pool = SandboxPool(2, preload=preload)

        async def run(code):
            done = await pool.run(parse_request({"code": code, "language": "python", "run_timeout": 20}))
            assert done.return_code == 0, done.stderr
            return done.stdout

        try:
            return {name: [await run(code) for _ in range(3)] for name, code in DRAW.items()}
        finally:
            pool.close()

    for name, drawn in asyncio.run(draw()).items():
        assert len(set(drawn)) == 3, (name, drawn)


def test_generators_of_a_library_are_renewed(tmp_path):
    (tmp_path / "made.py").write_text(MADE)
    program = (
        "import os, sys, made\n"
        "from rl.services.sandbox.fork_state import find_resets\n"
        "resets = find_resets()\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        for renew in resets: renew()\n"
        "        print(made.python.random(), made.numpy.random(), made.legacy.random_sample())\n"
        "        sys.stdout.flush(); os._exit(0)\n"
        "    os.wait()\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [len(set(column)) for column in zip(*rows, strict=True)] == [3, 3, 3], done
