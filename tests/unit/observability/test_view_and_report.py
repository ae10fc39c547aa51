from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from rl.config.schema import Config
from rl.errors import DataError
from rl.observability import viewer
from rl.observability.curves import smooth
from rl.observability.evaluations import read_evaluations
from rl.observability.report import main as report_command
from rl.observability.report import report
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import read_records, to_record
from rl.types import SequenceStart, Start, ToolCall, ToolResult, ToolStatus, Turn
from tests.samples import AtHand
from tests.unit.observability.examples import evaluation_metrics_of, make_group, make_trajectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    config = Config()
    config.megatron_training.output_dir = str(tmp_path)
    config.megatron_training.run_name = "run"
    made = RunDirectory.create(config, "tiny")
    groups = [make_group("gcd", score=0.5, prompt_id="train-1"), make_group("lcm", score=1.0, prompt_id="train-2")]
    groups.append(make_group("lcm", score=0.0, prompt_id="train-3"))
    AtHand().write_trajectories(made.step_file(1), groups)
    AtHand().write_trajectories(made.step_file(12), groups[:1])
    rows = [
        {"step": 0, **evaluation_metrics_of([make_group("gcd", score=0.0), make_group("lcm", score=0.0)])},
        {"step": 1, "critic/score/mean": 0.25},
        {"step": 2, "critic/score/mean": 0.5},
        {"step": 2, **evaluation_metrics_of([make_group("gcd", score=1.0), make_group("lcm", score=0.0)])},
    ]
    made.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.finish({"steps": 2, "tokens": 1234.0, "wall_s": 65.0, "checkpoint": None})
    return made


def test_record_keeps_turns_calls_results_and_rewards() -> None:
    record = to_record(make_trajectory(status=ToolStatus.TIMEOUT))
    assert record["turns"][0]["calls"][0]["arguments"] == {"code": "print(4)"}
    assert record["turns"][0]["results"][0]["status"] == "timeout"
    assert record["rewards"] == {"right": 1.0}
    assert record["policy_versions"] == [0, 1]
    assert json.loads(json.dumps(record)) == record


def test_records_are_read_back_as_written(directory: RunDirectory) -> None:
    records = read_records(directory.trajectories / "step_000001.jsonl")
    assert [r["id"] for r in records] == ["train-1/0", "train-2/0", "train-3/0"]


def test_malformed_record_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "step_000001.jsonl"
    record = to_record(make_trajectory())
    path.write_text(f'{json.dumps(record)}\n{{"id": \n')
    with pytest.raises(DataError, match="row 2: not JSON"):
        read_records(path)
    for change, problem in [
        ({"turns": None}, "turns: Input should be a valid list"),
        ({"turns": [{"text": 5, "num_tokens": 1}]}, "turns.0.text: Input should be a valid string"),
        ({"rewards": None}, "rewards: Input should be a valid dictionary"),
        ({"stop_reason": "weird"}, "stop_reason: Input should be"),
        ({"num_sampled": 10**6}, "num_sampled: must be at most response_length"),
        ({"id": "train-1"}, "id: must end in /NUMBER, got 'train-1'"),
    ]:
        path.write_text(json.dumps(record | change))
        with pytest.raises(DataError, match=f"row 1: not a trajectory: {re.escape(problem)}"):
            read_records(path)
    for text in (b"5", b"[]", b"{}", b'{"id": "\xe9"}', b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(DataError, match="row 1: not"):
            read_records(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--step", "1", "--best"], "train-2/0"),
        (["--step", "1", "--worst"], "train-3/0"),
        (["--step", "1", "--index", "1"], "train-2/0"),
        (["--step", "1", "--id", "train-3/0"], "train-3/0"),
        ([], "step 12 "),
        (["--list"], "step_000012"),
    ],
)
def test_view_chooses_a_trajectory(
    directory: RunDirectory, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert viewer.main([str(directory.path), *arguments]) == 0
    assert expected in capsys.readouterr().out


def test_view_of_an_evaluation_needs_no_option(directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    for path in directory.trajectories.iterdir():
        path.unlink()
    AtHand().write_trajectories(directory.evaluation_file(0), [make_group("gcd", score=1.0, prompt_id="test-1")])
    assert viewer.main([str(directory.path), "--best"]) == 0
    assert "evaluation after step 0  test-1/0  gcd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "7"], "Available: 1, 12"),
        (["--step", "1", "--index", "3"], "must be from 0 to 2"),
        (["--id", "nobody"], "no trajectory 'nobody'"),
        (["--eval"], "no trajectories of kind 'eval'"),
    ],
)
def test_view_lists_the_available_choices(directory: RunDirectory, arguments: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        viewer.main([str(directory.path), *arguments])


def test_view_of_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        viewer.main([str(tmp_path)])


def test_print_record_uses_different_colors_for_model_and_tool() -> None:
    out = io.StringIO()
    viewer.print_record(
        to_record(make_trajectory()), Console(file=out, force_terminal=True, color_system="standard", width=100)
    )
    text = out.getvalue()
    assert "\x1b[32m<tool_call>" in text
    assert "\x1b[33m4" in text
    assert "score 1.000  right 1.000" in text


def test_print_record_shows_calls_with_arguments_result_status_and_times() -> None:
    trajectory = make_trajectory()
    turn = trajectory.turns[0]
    turn.calls.append(ToolCall("search", {"query_list": ["a", "é"], "topk": 3}))
    turn.results.append(ToolResult("search", "none", ToolStatus.UNAVAILABLE, queue_s=60.0, num_failed_attempts=9))
    turn.calls.append(ToolCall("", {}, raw="{oops}", error="not JSON"))
    turn.results.append(ToolResult("", "Error: not JSON", ToolStatus.PARSE_ERROR))
    out = io.StringIO()
    viewer.print_record(to_record(trajectory), Console(file=out, width=100))
    text = out.getvalue()
    assert "[call of calc]\nprint(4)\n[calc: ok, queued 0.040 s, ran 0.060 s, reward 0.25]\n4\n" in text
    assert '[call of search]\nquery_list: ["a", "é"]\ntopk: 3\n[search: unavailable, queued 60.000 s' in text
    assert "9 failed attempts]" in text
    assert "[call of a tool, malformed]\n{oops}\n[tool: parse_error" in text


def test_print_record_shows_turns_under_their_sequence_and_where_it_branched() -> None:
    trajectory = make_trajectory()
    trajectory.starts = [
        SequenceStart(Start.FIRST),
        SequenceStart(Start.SECOND_CONTINUATION, branches_from=0, num_copied=7),
        SequenceStart(Start.NEW_CONVERSATION),
    ]
    asked = {"role": "user", "content": "And now?"}
    trajectory.turns = [Turn("a", 1), Turn("b", 1), Turn("c", 1, sequence=1, asked=[asked]), Turn("d", 1, sequence=2)]
    out = io.StringIO()
    viewer.print_record(to_record(trajectory), Console(file=out, width=100))
    lines = [line.rstrip(" ─") for line in out.getvalue().splitlines()]
    places = [lines.index(line) for line in ("sequence 0 of 3: first", "a", "b")]
    behind = "sequence 1 of 3: behind 7 tokens of sequence 0, second continuation"
    places += [lines.index(line) for line in (behind, "And now?", "c")]
    places += [lines.index("sequence 2 of 3: new conversation"), lines.index("d")]
    assert places == sorted(places)


def test_print_record_does_not_interpret_markup() -> None:
    trajectory = make_trajectory()
    trajectory.turns[0].text = "[bold]x[/red] a[0]"
    out = io.StringIO()
    viewer.print_record(to_record(trajectory), Console(file=out, width=100))
    assert "[bold]x[/red] a[0]" in out.getvalue()


def test_print_record_shows_escape_codes_as_symbols() -> None:
    trajectory = make_trajectory()
    trajectory.turns[0].text, trajectory.turns[0].results[0].text = "a\x1b[2Jb", "\x9b31m\r"
    out = io.StringIO()
    viewer.print_record(to_record(trajectory), Console(file=out, width=100))
    assert "a␛[2Jb" in out.getvalue() and "␦31m␍" in out.getvalue()
    assert not set(out.getvalue()) & {"\x1b", "\x9b", "\r"}


def test_evaluations_are_found_among_the_metrics(directory: RunDirectory) -> None:
    first, last = read_evaluations(directory.read_metrics())
    assert (first.step, last.step) == (0, 2)
    assert last.accuracy["all"].mean == 0.5
    assert last.accuracy["gcd"].num_questions == 1


def test_report_prints_the_table_and_draws_the_curves(directory: RunDirectory) -> None:
    out = io.StringIO()
    picture = report(directory.path, base=directory.path, target=Console(file=out, width=100))
    text = out.getvalue()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "0.50 (0.09-0.91)" in text  # all, after step 2
    assert "1,234" in text
    assert "1 min 05 s" in text
    assert "metrics.jsonl" in text


def test_report_without_an_evaluation_still_draws(directory: RunDirectory) -> None:
    directory.metrics_file.write_text('{"step": 1, "critic/score/mean": 0.25}\n')
    out = io.StringIO()
    assert report(directory.path, target=Console(file=out, width=80)).is_file()
    assert out.getvalue().startswith("No evaluation yet: set megatron_training.eval_data_path, or run `rl evaluate`.\n")


@pytest.mark.parametrize("arguments", [["--list"], [], ["--eval"]])
def test_view_of_a_run_without_trajectories_raises(directory: RunDirectory, arguments: list[str]) -> None:
    for path in directory.trajectories.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no trajectories\. A run has some after its first step"):
        viewer.main([str(directory.path), *arguments])


def test_list_counts_trajectories_without_a_score(directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    AtHand().write_trajectories(directory.step_file(2), [make_group(score=None), make_group(score=0.5)])
    viewer.main([str(directory.path), "--list"])
    assert "step_000002        2 trajectories  mean score 0.500  1 without a score\n" in capsys.readouterr().out


def test_smooth_of_three_values() -> None:
    # weights 1, then 0.5 and 1, then 0.25, 0.5 and 1
    assert smooth([1.0, 0.0, 2.0], weight=0.5) == pytest.approx([1.0, 0.5 / 1.5, 2.25 / 1.75])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", b'{"steps": 2, "tok', "summary.json: malformed (JSONDecodeError"),
        ("summary.json", b"{}", "summary.json: malformed (KeyError: 'steps')"),
        ("summary.json", b"5", "summary.json: malformed (TypeError"),
        ("metrics.jsonl", b"5\n", "metrics.jsonl, row 1: must be an object, got 5. Remove the line."),
        ("metrics.jsonl", b"\xff\n{}\n", "metrics.jsonl, row 1: not JSON ('utf-8' codec"),
    ],
)
def test_report_names_a_damaged_file(directory: RunDirectory, name: str, content: bytes, message: str) -> None:
    (directory.path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        report_command([str(directory.path)])
