"""The printed comparison of two evaluations, from the files of their runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rl.__main__ import main
from rl.observability.paired_report import compare_files, print_comparison
from rl.observability.trajectories import to_record
from tests.unit.observability.examples import make_trajectory


def write_run(folder: Path, questions: dict[str, list[float]], *, sets: bool = True) -> Path:
    """A run with an evaluation after step 12; the set of a question is the beginning of its id."""
    (folder / "trajectories").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    path = folder / "trajectories/eval_000012.jsonl"
    records = []
    for name, scores in questions.items():
        for index, score in enumerate(scores):
            record = to_record(make_trajectory(score=score, index=index, prompt_id=name))
            records.append({**record, "evaluation_set": name.partition("-")[0] if sets else None})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_comparison_has_a_row_for_each_set_and_names_what_changed(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {"math-1": [0], "math-2": [1], "qa-1": [1]})
    second = write_run(tmp_path / "b", {"math-1": [1], "math-2": [1], "qa-1": [0]})
    screen = Console(width=80, record=True, file=io.StringIO())
    print_comparison(compare_files(first, second), first, second, screen)
    text = screen.export_text()
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "questions num before after difference changed p" in rows
    assert any(row.startswith("math 2 0.50 1.00 +0.50 (") and row.endswith("+1 -0 1.000") for row in rows)
    assert any(row.startswith("qa 1 1.00 0.00 -1.00 (") and row.endswith("+0 -1 1.000") for row in rows)
    assert any(row.startswith("all 3 0.67 0.67 +0.00 (") and row.endswith("+1 -1 1.000") for row in rows)
    assert "gained 1 of 3: math-1\n" in text
    assert "lost 1 of 3: qa-1\n" in text
    assert f"to read one: python -m rl view {tmp_path}/b --eval --step 12 --id qa-1/0\n" in text
    assert f"and before:  python -m rl view {tmp_path}/a --eval --step 12 --id qa-1/0\n" in text


def test_comparison_shows_any_name_as_it_is(tmp_path: Path) -> None:
    names = ["a[/b]", "gsm8k [main]", "x\x1b[31mred"]
    first = write_run(tmp_path / "a", {f"{name}-1": [0] for name in names})
    second = write_run(tmp_path / "b", {f"{name}-1": [1] for name in names})
    screen = Console(width=100, force_terminal=True, color_system=None, file=io.StringIO())
    print_comparison(compare_files(first, second), first, second, screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(text.count(name) >= 2 for name in ("a[/b]", "gsm8k [main]", "x␛[31mred"))
    assert "\x1b[31m" not in text


def test_comparison_leaves_out_and_counts_what_only_one_has(tmp_path: Path) -> None:
    local = write_run(tmp_path / "a", {"math-1": [0], "qa-1": [1]})
    served = write_run(tmp_path / "b", {"math-1": [1], "math-2": [1], "qa-1": [1], "long-1": [1]})
    for first, second in ((local, served), (served, local)):
        screen = Console(width=80, record=True, file=io.StringIO())
        compared = compare_files(first, second)
        assert {name: one.num_questions for name, one in compared.items()} == {"math": 1, "qa": 1, "all": 2}
        print_comparison(compared, first, second, screen)
        assert "\nquestions left out, since only one of the two has them: 2\n" in screen.export_text()


def test_comparison_takes_records_without_a_set(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {"test-1": [0]}, sets=False)
    second = write_run(tmp_path / "b", {"test-1": [1]})
    assert list(compare_files(first, second)) == ["all"]


def test_report_against_takes_the_last_evaluation_of_each_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", {"math-1": [0]})
    write_run(tmp_path / "b", {"math-1": [1]})
    assert main(["report", str(tmp_path / "b"), "--against", str(tmp_path / "a")]) == 0
    assert f"before: {tmp_path}/a/trajectories/eval_000012.jsonl" in capsys.readouterr().out
    (tmp_path / "c/trajectories").mkdir(parents=True)
    (tmp_path / "c/config.yaml").write_text("")
    assert main(["report", str(tmp_path / "b"), "--against", str(tmp_path / "c")]) == 2
    assert "no trajectories of kind 'eval' yet" in capsys.readouterr().err
    write_run(tmp_path / "d", {"math-2": [1]})
    assert main(["report", str(tmp_path / "b"), "--against", str(tmp_path / "d")]) == 2
    assert "got 1 and 1 with 0 in common; only one has math-2, math-1." in capsys.readouterr().err
