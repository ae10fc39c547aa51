"""Logging of drivers and workers: one format, quiet libraries, and the console that progress shares."""

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
    """The console of this process on standard output; bars and log lines share it, so that neither cuts the other."""
    return Console(highlight=False)


def setup_logging(log_file: Path | None = None, *, level: int = logging.INFO) -> None:
    """Log the project at `level`, and of libraries only errors, to the terminal or standard error.

    Calling it again replaces what an earlier call set up.

    Args:
        log_file: Takes the same lines and the warnings of libraries; its folder must be there.
        level: Of the project's own loggers.
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


def warn_once(logger: logging.Logger, message: str, *args: object) -> None:
    """Log a warning the first time this process meets this text (`message` filled with `args`).

    Args:
        logger: The caller's.
        message: A %-format.
        args: What it is filled with.
    """
    _warn(logger.name, message % args if args else message)


@cache
def _warn(logger_name: str, text: str) -> None:
    logging.getLogger(logger_name).warning("%s", text)
