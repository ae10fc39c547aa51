"""Print what `examples.dspy_multihop.train` found: recalls, times, and one claim before and after.

Usage: python -m examples.dspy_multihop.report runs/dspy_multihop/grpo-seed0
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def report(folder: Path) -> str:
    """Write the report of a folder with `results.json`, `before.jsonl` and `after.jsonl`."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    before, after = (_read(folder / f"{name}.jsonl") for name in ("before", "after"))
    lines = [f"recall on {results['claims']} held-out claims (95 % interval)", ""]
    for name in ("before", "after", "gain"):
        found = results[name]
        lines.append(f"  {name:7} {found['mean']:.3f}  ({found['low']:.3f} to {found['high']:.3f})")
    lines.append("")
    for number in sorted({len(row["titles"]) for row in before}):
        means = [_mean_recall(rows, number) for rows in (before, after)]
        lines.append(f"  claims of {number} documents: {means[0]:.3f} -> {means[1]:.3f}")
    lines += ["", *(f"  {name}: {seconds:.0f} s" for name, seconds in results["seconds"].items()), ""]
    pairs = list(zip(before, after, strict=True))
    pair = max(
        [rows for rows in pairs if "query" in rows[0]] or pairs, key=lambda rows: rows[1]["recall"] - rows[0]["recall"]
    )
    lines += [f"  claim: {pair[0]['claim']}", f"  documents: {', '.join(pair[0]['titles'])}"]
    for name, row in zip(("before", "after"), pair, strict=True):
        lines += [f"  {name}: {row.get('key_facts', 'malformed answer')}", f"          query: {row.get('query')}"]
    return "\n".join(lines)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _mean_recall(rows: list[dict[str, Any]], num_titles: int) -> float:
    recalls = [row["recall"] for row in rows if len(row["titles"]) == num_titles]
    return float(sum(recalls) / len(recalls))


if __name__ == "__main__":
    print(report(Path(sys.argv[1])))
