"""`rl init FOLDER`: a small project of one's own, to be changed part by part.

`template/` holds its files. They are Python, YAML and a script that run as they are; two names in them are filled in:
the model folder and the Python interpreter.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rl.errors import ConfigError

TEMPLATE = Path(__file__).parent / "template"
MODEL = Path("models/SmolLM2-135M-Instruct")
"""The model of the quickstart; `tools/fetch_model.py` fetches it."""
_FILLED_IN = ("configs/train.yaml", "run.sh", "README.md")


def main(argv: list[str]) -> int:
    """Parse the arguments of `rl init` and write the project; returns the exit code."""
    description = "Write a small project of your own: configuration, reward, tool, data, test."
    parser = argparse.ArgumentParser(prog="rl init", description=description)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    model = "Hugging Face folder; default: %(default)s"
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FOLDER", help=model)
    given = parser.parse_args(argv)
    create_project(given.folder, given.model)
    sys.stdout.write(f"{given.folder}: read its README.md, or begin with: bash {given.folder / 'run.sh'}\n")
    return 0


def create_project(folder: Path, model: Path) -> None:
    """Copy the template.

    Args:
        folder: The project's folder; it must not exist, or be empty.
        model: Hugging Face model folder that the project trains.

    Raises:
        ConfigError: The folder is not empty, or `model` is no model folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"rl init: '{folder}' must be a new or empty folder. Choose another name.")
    if not (model / "config.json").is_file():
        raise ConfigError(
            f"rl init --model: no model folder '{model}'. Fetch the 135M model with `python tools/fetch_model.py`, "
            "or name a Hugging Face folder with --model."
        )
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILLED_IN:
        path = folder / name
        text = path.read_text().replace("MODEL_FOLDER", str(model.resolve())).replace("PYTHON_PATH", sys.executable)
        path.write_text(text)
