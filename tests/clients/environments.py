"""Environments of clients, apart from Turnwise's: made once with pip, and kept where TURNWISE_CLIENTS_CACHE says."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CACHE_VARIABLE = "TURNWISE_CLIENTS_CACHE"
"""Names the folder of the environments; without it, they are in the folder for temporary files."""
_INSTALL_TIMEOUT_S = 900


def python_of(name: str, *installs: str) -> str:
    """The interpreter of an environment, which is made if it is not there. Skips the test without a package index.

    Args:
        name: For the folder, and for the reason of a skip.
        installs: Arguments of `pip install` with the packages' versions, one call each.
    """
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path(tempfile.gettempdir()) / "turnwise-clients")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    mark = hashlib.sha256("\n".join([version, *installs]).encode()).hexdigest()[:8]
    folder = cache / f"{name}-{mark}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    for arguments in installs:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments.split()]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
        if installed.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            told = installed.stderr.strip().splitlines()[-1:] or ["no reason given"]
            pytest.skip(f"{name}: pip cannot install {arguments}: {told[0]:.200}")
    complete.touch()
    return str(python)
