"""Environments of other packages' clients, apart from the project's: made once, in a folder that git ignores."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.e2e.commands import ROOT

FOLDER = ROOT / ".client-environments"
_INSTALL_TIMEOUT_S = 300


def python_of(name: str, *installs: str) -> str:
    """The interpreter of an environment, which is made if it is not there; skips the test without a package index.

    Args:
        name: Of the environment.
        installs: Arguments of `pip install`, one call each.
    """
    folder = FOLDER / name
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=_INSTALL_TIMEOUT_S)
        for arguments in installs:
            command = [python, "-m", "pip", "install", "--quiet", "--retries", "1", *arguments.split()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.skip(f"{name}: cannot be installed ({done.stderr.strip().splitlines()[-1]:.200})")
        (folder / "complete").touch()
    return str(python)
