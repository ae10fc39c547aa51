"""The options of `rl view` that show a run as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from rl.errors import DataError
from rl.observability.log import console, setup_logging
from rl.observability.run_directory import RunDirectory

_PORT = 8400
_MAX_MB = 256


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add `--html` and `--serve` with their options."""
    page = parser.add_argument_group("the run as a page")
    how = page.add_mutually_exclusive_group()
    how.add_argument("--html", action="store_true", help="write one HTML file, which opens from disk")
    how.add_argument("--serve", action="store_true", help="serve the page on this machine; it follows a live run")
    page.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file for --html; default: view.html in the run directory"
    )
    page.add_argument(
        "--max-mb", type=_positive, default=_MAX_MB, metavar="N",
        help=f"limit of the file in MiB; beyond it trajectories are listed without their content; default: {_MAX_MB}",
    )  # fmt: skip
    page.add_argument("--port", type=int, default=_PORT, help=f"port for --serve; default: {_PORT}")


def show_page(run: RunDirectory, arguments: argparse.Namespace) -> int:
    """Write or serve the page; return the exit code.

    Args:
        run: The run.
        arguments: With the options of `add_page_options`.

    Raises:
        DataError: A file of the run is malformed, or the page cannot be written.
        ServiceError: The port is in use.
    """
    if arguments.serve:
        from rl.observability.page.live import serve  # aiohttp takes a moment to load

        setup_logging()
        serve(run, arguments.port)
        return 0
    from rl.observability.page.export import write_page

    output = arguments.output or run.path / "view.html"
    try:
        with console().status("reading the trajectories"):
            size = write_page(run, output, arguments.max_mb << 20)
    except OSError as error:
        raise DataError(f"--output: cannot write {output}, {error.strerror}. Choose another file with -o.") from error
    left_out = f", {size.num_left_out:,} of them without content (--max-mb)" if size.num_left_out else ""
    console().print(
        f"{output}: {size.num_trajectories:,} trajectories{left_out}, {size.num_bytes / 2**20:.1f} MiB",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
