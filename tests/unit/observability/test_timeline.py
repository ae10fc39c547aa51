from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.__main__ import main
from rl.errors import DataError
from rl.observability.run_directory import RunDirectory
from rl.observability.timeline import TRAJECTORY, step_spans, trajectory_spans, write_spans
from rl.observability.trace import trace_events
from rl.observability.trajectories import to_record
from rl.types import Prompt, Span, StopReason, ToolResult, ToolStatus, Trajectory, Turn
from tests.traces import check_trace

T0 = 1_700_000_000.0


def make_trajectory(number: int, *, start_s: float, worker: int = 0) -> Trajectory:
    """Generates for 1 s, has two calls at once (0.25 s in the queue, then 0.5 and 1.5 s), generates, is scored."""
    prompt = Prompt("p", [{"role": "user", "content": "what"}], "1", "test")
    results = [
        ToolResult("search", "a", ToolStatus.OK, queue_s=0.25, run_s=run_s, start_s=1.0001) for run_s in (0.5, 1.5)
    ]
    turns = [
        Turn("one", 3, results=results, generate_s=1.0, tool_s=1.75, start_s=0.0),
        Turn("two", 2, generate_s=0.5, start_s=2.7501),
    ]
    return Trajectory(
        prompt, number, [], turns, StopReason.FINISHED, wall_s=3.25, started_at=T0 + start_s, reward_s=0.125,
        worker=worker,
    )  # fmt: skip


def make_run(folder: Path, trajectories: list[Trajectory]) -> RunDirectory:
    run = RunDirectory(folder)
    run.trajectories.mkdir()
    run.config_file.write_text("{}")
    records = [json.dumps(to_record(trajectory)) for trajectory in trajectories]
    run.step_file(2).write_text("\n".join(records) + "\n")
    spans = [
        Span("driver", "step", T0, T0 + 5.0), Span("driver", "gen", T0, T0 + 4.0),
        Span("driver", "update_actor", T0 + 4.0, T0 + 5.0), Span("actor 0", "update_on", T0 + 4.125, T0 + 4.875),
        Span("rollout 1", "update_weights", T0 + 4.9, T0 + 5.0),
    ]  # fmt: skip
    write_spans(run.timeline_file(2), spans)
    return run


def test_spans_of_a_trajectory_follow_from_its_record() -> None:
    record = to_record(make_trajectory(3, start_s=10.0, worker=1))
    found = [
        (s.who, s.name, round(s.start - T0, 4), round(s.end - T0, 4), s.trajectory) for s in trajectory_spans(record)
    ]
    assert found == [
        ("rollout 1", TRAJECTORY, 10.0, 13.375, "p/3"),
        ("rollout 1", "generate", 10.0, 11.0, "p/3"),
        ("rollout 1", "wait search", 11.0001, 11.2501, "p/3"),
        ("rollout 1", "tool search", 11.2501, 11.7501, "p/3"),
        ("rollout 1", "wait search", 11.0001, 11.2501, "p/3"),
        ("rollout 1", "tool search", 11.2501, 12.7501, "p/3"),
        ("rollout 1", "generate", 12.7501, 13.2501, "p/3"),
        ("rollout 1", "reward", 13.25, 13.375, "p/3"),
    ]


def test_record_of_an_older_version_has_no_spans() -> None:
    record = to_record(make_trajectory(0, start_s=0.0))
    for name in ("started_at", "reward_s", "worker"):
        del record[name]
    assert list(trajectory_spans(record)) == []


def test_trace_has_a_thread_for_each_trajectory_that_runs_at_once_and_for_calls_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, [make_trajectory(0, start_s=0.0), make_trajectory(1, start_s=0.5),
                              make_trajectory(2, start_s=3.4), make_trajectory(3, start_s=0.0, worker=1)])  # fmt: skip
    events = trace_events(step_spans(run, 2))
    trace = check_trace(events)
    assert trace.threads["driver"] == ["work"]
    assert trace.threads["actor 0"] == ["work"]
    assert trace.threads["rollout 0"] == ["slot 0", "slot 0, at once 1", "slot 1", "slot 1, at once 1"]
    assert trace.threads["rollout 1"] == ["work", "slot 0", "slot 0, at once 1"]
    where = {event["name"]: thread for thread, own in trace.events.items() for event in own if "p/" in event["name"]}
    assert where == {  # the third begins when the first has ended, and takes its place
        "p/0": ("rollout 0", "slot 0"), "p/1": ("rollout 0", "slot 1"), "p/2": ("rollout 0", "slot 0"),
        "p/3": ("rollout 1", "slot 0"),
    }  # fmt: skip
    assert trace.seconds("driver", "gen") == pytest.approx(4.0, abs=1e-6)
    assert trace.seconds("rollout 0", "generate") == pytest.approx(3 * 1.5, abs=1e-3)
    assert trace.seconds("rollout 0", "tool search") == pytest.approx(3 * 2.0, abs=1e-3)
    running = [e["args"]["running"] for e in events if e["ph"] == "C" and e["pid"] == trace.processes["rollout 0"]]
    assert (max(running), running[-1]) == (2, 0)


def test_only_trajectories_that_ran_in_the_step_are_in_its_timeline(tmp_path: Path) -> None:
    run = make_run(tmp_path, [make_trajectory(0, start_s=-9.0), make_trajectory(1, start_s=1.0)])
    run.evaluation_file(2).write_text(json.dumps(to_record(make_trajectory(2, start_s=4.5))) + "\n")
    run.step_file(3).write_text(json.dumps(to_record(make_trajectory(3, start_s=1.0))) + "\n")  # carried over
    assert {span.trajectory for span in step_spans(run, 2)} == {None, "p/1", "p/2"}
    run.metrics_file.write_text('{"step": 2, "rollout/surplus_groups": 1.0}\n')
    assert {span.trajectory for span in step_spans(run, 2)} == {None, "p/1", "p/2", "p/3"}


def test_spans_appear_under_their_name_when_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timeline/step_000001.json"

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        write_spans(path, [Span("driver", "step", 1.0, 2.0)])
    assert not path.exists()


def test_reader_refuses_spans_that_cross_within_a_thread() -> None:
    """The check of the trace can fail."""

    def event(ts: int, dur: int) -> dict[str, object]:
        return {"ph": "X", "pid": 0, "tid": 0, "ts": ts, "dur": dur, "name": "a"}

    names = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "driver"}},
        {"ph": "M", "pid": 0, "tid": 0, "name": "thread_name", "args": {"name": "work"}},
    ]
    check_trace([*names, event(0, 10), event(2, 8), event(10, 1)])
    with pytest.raises(AssertionError, match="crosses"):
        check_trace([*names, event(0, 10), event(5, 10)])
    with pytest.raises(AssertionError, match="ends before"):
        check_trace([*names, event(0, -1)])


def test_command_prints_the_phases_and_writes_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, [make_trajectory(0, start_s=0.0)])
    assert main(["timeline", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["step", "2:", "5.00", "s"] in lines
    assert ["driver", "gen", "1", "4.000", "80%", "0.000"] in lines
    assert ["update_actor", "1", "1.000", "20%", "4.000"] in lines
    assert ["tool", "search", "2", "2.000", "40%", "1.250"] in lines
    check_trace(json.loads((tmp_path / "timeline/step_000002.trace.json").read_text())["traceEvents"])
    assert main(["timeline", str(tmp_path), "--step", "2", "-o", str(tmp_path / "own.json")]) == 0
    assert (tmp_path / "own.json").is_file()


def test_command_says_which_timelines_there_are(tmp_path: Path) -> None:
    run = make_run(tmp_path, [])
    with pytest.raises(DataError, match=r"step_000003\.json: no timeline of this step"):
        step_spans(run, 3)
    run.timeline_file(2).write_text("[{}]")
    with pytest.raises(DataError, match="not a timeline"):
        step_spans(run, 2)
