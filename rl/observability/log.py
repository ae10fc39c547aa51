"""Logging of drivers and workers: one format, quiet libraries, one console shared with the progress bar."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_QUIET = (
    "ray",
    "transformers",
    "urllib3",
    "asyncio",
    "aiohttp",
    "filelock",
    "matplotlib",
    "PIL",
    "numexpr",
    "datasets",
)


@cache
def console() -> Console:
    """Console of this process on standard output; progress bar and log lines share it, so that they do not mix."""
    return Console(highlight=False)


def setup_logging(log_file: Path | None = None, *, level: int = logging.INFO) -> None:
    """Log the project at `level`, and errors of libraries, to the terminal or standard error.

    A second call replaces the handlers of the first.

    Args:
        log_file: Gets the same lines and warnings of libraries; its folder must exist.
        level: Level of the project's loggers.
    """
    terminal: logging.Handler
    if console().is_terminal:
        terminal = RichHandler(console=console(), show_path=False, log_time_format="%H:%M:%S", rich_tracebacks=False)
        terminal.setFormatter(logging.Formatter("%(message)s"))
    else:
        terminal = logging.StreamHandler()
        terminal.setFormatter(logging.Formatter(_FORMAT))
    terminal.addFilter(lambda record: record.name.split(".")[0] == "rl" or record.levelno >= logging.ERROR)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.addHandler(terminal)
    if log_file is not None:
        to_file = logging.FileHandler(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(to_file)
    root.setLevel(logging.WARNING)
    logging.getLogger("rl").setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    warnings.filterwarnings("default")
