"""What `rl evaluate` shows when it is done: a table, a JSON file, and a comparison with an earlier evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.errors import ConfigError
from rl.observability.evaluation_metrics import Figures, figures_table
from rl.observability.paired import PairedComparison, common_questions
from rl.observability.paired_report import compare_files, evaluation_file, print_comparison
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import read_records
from rl.types import Prompt


@dataclass(slots=True, frozen=True)
class Output:
    """Where the figures of an evaluation go."""

    target: Console
    json_file: str | None = None
    """A file, or `-` for standard output."""
    against: Path | None = None
    """Run directory, or file of trajectories, of the evaluation to compare with."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Check before the evaluation what would fail after it.

        Raises:
            ConfigError: The JSON file cannot be written.
            DataError: The evaluation to compare with cannot be read, or has other questions.
        """
        if self.json_file not in (None, "-") and not Path(str(self.json_file)).absolute().parent.is_dir():
            raise ConfigError(f"--json: no folder for the file, got '{self.json_file}'. Make the folder first.")
        if self.against is not None:
            asked = [{"id": f"{p.id}/0", "messages": p.messages, "ground_truth": p.ground_truth} for p in prompts]
            common_questions(read_records(evaluation_file(self.against)), asked)

    def show(self, figures: Sequence[Figures], run: RunDirectory, model: str) -> None:
        """Write the JSON, then print the table and the comparison."""
        compared: dict[str, PairedComparison] = {}
        if self.against is not None:
            compared = compare_files(evaluation_file(self.against), run.evaluation_file(0))
        if self.json_file is not None:
            self._write(figures, compared, run, model)
        self.target.print(figures_table(figures))
        if self.against is not None:
            print_comparison(compared, evaluation_file(self.against), run.evaluation_file(0), self.target)

    def _write(
        self, figures: Sequence[Figures], compared: dict[str, PairedComparison], run: RunDirectory, model: str
    ) -> None:
        content: dict[str, Any] = {
            "run": str(run.path),
            "model": model,
            "figures": [asdict(row) for row in figures],
            "metrics": run.read_metrics()[-1],
            "against": None if self.against is None else str(self.against),
            "comparison": {name: asdict(one) for name, one in compared.items()},
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        if self.json_file == "-":
            sys.stdout.write(text)
        else:
            Path(str(self.json_file)).write_text(text, encoding="utf-8")
