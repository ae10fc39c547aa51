from __future__ import annotations

import importlib.util
import json
import logging
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from rl.config.kinds import TrackerName
from rl.config.schema import Config
from rl.errors import ConfigError, RolloutError
from rl.observability.run_directory import RunDirectory
from rl.observability.tracker_clients import CLIENTS, Client
from rl.observability.tracker_table import COLUMNS, Row, table_rows
from rl.observability.trackers import BackgroundTracker, MetricsWriter
from rl.types import Trajectory
from tests.samples import AtHand
from tests.unit.observability.examples import make_group

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = Config()
    config.megatron_training.output_dir, config.megatron_training.run_name = str(tmp_path), "one"
    config.megatron_training.trackers_offline = True
    return config


def track(config: Config, name: str) -> RunDirectory:
    """Two steps, an evaluation, a table and a history, as a resumed run gives them."""
    config.megatron_training.trackers = [TrackerName(name)]
    directory = RunDirectory.create(config, "tiny")
    with MetricsWriter(directory, config) as writer:
        writer.write_history([{"step": 1, "time": 1000.5, "seen": 0.25, "lost": None}])
        writer.write(2, {"seen": 0.5, "lost": NAN, "val-core/all/acc/mean@4": 0.75})
        writer.write(2, {"val-aux/reward_errors": 0.0})
        writer.write(3, {"seen": 1.5, "lost": INF})
        writer.write_trajectories(3, [make_group("<b>x</b>")], AtHand(), kind="eval")
    return directory


def installed(name: str) -> str:
    if importlib.util.find_spec(CLIENTS[TrackerName(name)].package) is None:
        pytest.skip(f"{name} is not installed")
    return name


SEEN = [(1, 0.25), (2, 0.5), (3, 1.5)]


def test_tensorboard_gets_history_finite_metrics_and_texts(config: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(track(config, "tensorboard").tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("seen")] == SEEN
    assert events.Scalars("seen")[0].wall_time == 1000.5
    assert events.Tags()["scalars"] == ["seen", "val-core/all/acc/mean@4", "val-aux/reward_errors"]
    (shown,) = events.Tensors("trajectories/eval/1/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert "```\n[user]\n2+2?\n```" in text
    assert "[calc: ok]\n4" in text


def test_wandb_offline_gets_the_metrics_and_a_table(config: Config) -> None:
    installed("wandb")
    import wandb
    from wandb.proto import wandb_internal_pb2 as proto

    directory = track(config, "wandb")
    wandb.teardown()  # its service writes the rest of the file when it ends, as at the end of a process
    (path,) = directory.path.glob("wandb/offline-run-*/*.wandb")
    found = []
    for raw in wandb_records(path):
        record = proto.Record()
        record.ParseFromString(raw)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            found.append((name, record.history.step.num, item.value_json))
    assert [(step, float(value)) for name, step, value in found if name == "seen"] == SEEN
    assert ("val-core/all/acc/mean@4", 2, "0.75") in found
    assert not [name for name, _, _ in found if name == "lost"]
    (table,) = directory.path.glob("wandb/offline-run-*/files/media/table/trajectories/*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == list(COLUMNS)
    assert shown["data"][0][0] == "train-1/0"


def wandb_records(path: Path) -> Iterator[bytes]:
    """Records of W&B's offline file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_mlflow_gets_the_metrics_under_names_it_accepts(config: Config) -> None:
    installed("mlflow")
    from mlflow.tracking import MlflowClient

    directory = track(config, "mlflow")
    client = MlflowClient(f"sqlite:///{directory.path.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("turnwise")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "seen")] == SEEN
    assert run.data.metrics["val-core/all/acc/mean_4"] == 0.75
    assert "lost" not in run.data.metrics
    assert run.data.params["megatron_training.run_name"] == "one"
    (table,) = client.list_artifacts(run.info.run_id, "trajectories")
    assert table.path == "trajectories/eval_000003.json"


def test_swanlab_offline_takes_everything(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    installed("swanlab")
    directory = track(config, "swanlab")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("rl.")]
    (texts,) = directory.path.glob("swanlab/run-*/media/text")
    assert "2+2?" in next(texts.iterdir()).read_text()


def test_trackio_gets_the_metrics(config: Config, tmp_path: Path) -> None:
    installed("trackio")
    import sqlite3

    track(config, "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "turnwise.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, m["seen"]) for step, text in rows if "seen" in (m := json.loads(text))] == SEEN


class Failing:
    """A tracker whose network is away."""

    def __init__(self) -> None:
        self.closed_with: bool | None = None

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("no route to host")

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        raise ConnectionError("no route to host")

    def close(self, *, has_succeeded: bool) -> None:
        self.closed_with = has_succeeded


def test_tracker_that_fails_in_mid_run_is_named_once_and_counted(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Failing()
    monkeypatch.setitem(CLIENTS, TrackerName.WANDB, Client("json", lambda directory, config: tracker, ""))
    directory = track(config, "wandb")
    assert [row["step"] for row in directory.read_metrics()] == [2, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "tracker wandb: a write failed (ConnectionError: no route to host); the run goes on",
        "tracker wandb: 5 writes failed and are missing there; metrics.jsonl has all",
    ]
    assert tracker.closed_with is True


def test_slow_tracker_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.observability.trackers._MOST_WAITING", 2)
    may_go_on, is_busy = threading.Event(), threading.Event()
    written: list[int] = []

    class Slow(Failing):
        def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
            is_busy.set()
            assert may_go_on.wait(60)
            written.append(step)

    tracker = BackgroundTracker("slow", Slow)
    tracker.write([(1, 0.0, {})])
    assert is_busy.wait(60)
    for step in (2, 3, 4, 5):
        tracker.write([(step, 0.0, {})])  # returns at once; two fit into the queue
    may_go_on.set()
    tracker.end(has_succeeded=True)
    tracker.join(60)
    assert written == [1, 2, 3]
    assert tracker.num_failures == 2


def test_tracker_that_does_not_start_is_refused_with_advice(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: RunDirectory, config: Config) -> Failing:
        raise PermissionError("api_key not configured")

    monkeypatch.setitem(CLIENTS, TrackerName.WANDB, Client("json", refuse, "Run `wandb login`."))
    message = r"trackers: wandb did not start, got 'PermissionError: api_key not configured'\. Run `wandb login`\."
    with pytest.raises(ConfigError, match=message):
        track(config, "wandb")


def test_tracker_whose_start_blocks_is_refused_with_advice_and_closed_when_it_starts(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.observability.trackers._START_S", 0.05)
    may_go_on, is_closed = threading.Event(), threading.Event()

    class Late(Failing):
        def close(self, *, has_succeeded: bool) -> None:
            is_closed.set()

    def block(directory: RunDirectory, config: Config) -> Failing:
        assert may_go_on.wait(60)
        return Late()

    monkeypatch.setitem(CLIENTS, TrackerName.WANDB, Client("json", block, "Run `wandb login`."))
    message = r"wandb did not start, got 'TimeoutError: no answer within 0\.05 s'\. Run `wandb login`\."
    with pytest.raises(ConfigError, match=message):
        track(config, "wandb")
    may_go_on.set()
    assert is_closed.wait(60)


def test_table_spans_the_scores_and_fetches_only_the_chosen_groups() -> None:
    groups = [make_group(score=float(number), prompt_id=f"q{number}") for number in range(4)]
    groups.append(make_group(score=None))
    fetched: list[str] = []

    class Watched(AtHand):
        def fetch_record(self, group: object) -> list[Trajectory]:
            fetched.append(group.prompt.id)  # type: ignore[attr-defined]
            return super().fetch_record(group)  # type: ignore[arg-type]

    rows = table_rows(groups, Watched(), 2)
    assert [row["score"] for row in rows] == [3.0, None]
    assert fetched == ["q3", "train-1"]
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["prompt"] == "[user]\n2+2?"
    assert rows[0]["response"] == ("[model, turn 1]\n<tool_call>\n\n[calc: ok]\n4\n\n[model, turn 2]\n\\boxed{4}")


def test_lost_texts_leave_the_table_out(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    class Gone(AtHand):
        def fetch_record(self, group: object) -> list[Trajectory]:
            raise RolloutError("the object store: trajectories are gone.")

    with MetricsWriter(RunDirectory.create(config, "tiny"), config) as writer:
        writer.write_trajectories(1, [make_group()], Gone(), kind="train")
    assert [r.getMessage() for r in caplog.records] == [
        "step 1: no table of trajectories for the trackers (the object store: trajectories are gone.)"
    ]


@pytest.mark.parametrize(("step", "is_shown"), [(1, True), (2, False), (10, True), (11, False)])
def test_tables_of_training_come_at_the_first_step_and_every_tenth(config: Config, step: int, is_shown: bool) -> None:
    fetched: list[int] = []

    class Watched(AtHand):
        def fetch_record(self, group: object) -> list[Trajectory]:
            fetched.append(step)
            return super().fetch_record(group)  # type: ignore[arg-type]

    with MetricsWriter(RunDirectory.create(config, "tiny"), config) as writer:
        writer.write_trajectories(step, [make_group()], Watched(), kind="train")
    assert bool(fetched) is is_shown
