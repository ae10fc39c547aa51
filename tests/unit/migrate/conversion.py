"""Converts a file in a folder of its own and checks the result as `rl validate` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.keys import value_at
from rl.config.load import compose_config
from rl.config.problems import Severity
from rl.config.schema import Config
from rl.migrate.command import migrate
from rl.migrate.read import Framework
from rl.preflight import inspect_run


@dataclass(slots=True)
class Conversion:
    """A converted configuration, read again from what was written."""

    text: str
    summary: str
    config: Config
    errors: list[str]
    warnings: list[str]

    def has(self, values: dict[str, Any]) -> bool:
        """Whether the configuration has these values; shows the first that differs."""
        for path, value in values.items():
            assert value_at(self.config, path) == value, path
        return True

    def part(self, title: str) -> str:
        """The lines below a title of the summary."""
        lines = self.summary.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith(f"{title}: "))
        below = lines[start + 1 :]
        end = next((number for number, line in enumerate(below) if not line.startswith("  ")), len(below))
        return "\n".join(below[:end])


def convert(folder: Path, name: str, content: str, framework: Framework | None = None) -> Conversion:
    """Write a file of another framework, convert it, and check the result."""
    source, output = folder / name, folder / "out" / "mine.yaml"
    source.write_text(content, encoding="utf-8")
    done = migrate(source, output, framework=framework)
    for path, text in done.texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    composed = compose_config(str(output))
    problems = [*composed.problems, *inspect_run(composed.config, composed.given, is_strict=False)]
    texts = {
        kind: [found.text for found in problems if found.severity is kind]
        for kind in (Severity.ERROR, Severity.WARNING)
    }
    return Conversion(done.texts[output], done.summary, composed.config, texts[Severity.ERROR], texts[Severity.WARNING])
