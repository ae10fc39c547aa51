"""The main path with the real vLLM, Megatron, Ray and sandbox: cold start, DAPO, resume, nothing left over."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from rl.observability.run_directory import RunDirectory
from rl.observability.timeline import step_spans
from rl.observability.token_records import read_tokens
from rl.observability.trace import trace_events
from rl.observability.trajectories import read_records
from rl.run.checkpoints import checkpoint_damages
from rl.services.embedded import EmbeddedSandbox
from rl.types import Span
from tests.e2e.commands import ROOT, TIMEOUT_S, ended, finish, start, steps_of
from tests.traces import check_trace

MARK = "\ufffd"
"""How decoders write an incomplete character, one or several."""

pytestmark = pytest.mark.timeout(3 * TIMEOUT_S)


def descendants() -> set[int]:
    return {p.pid for p in psutil.Process(os.getpid()).children(recursive=True)}


def left_files() -> set[Path]:
    """Where a run keeps sockets, Ray's session and published weights."""
    return {path for folder in ("/tmp", "/tmp/ray", "/dev/shm") for path in Path(folder).glob("*")}


def test_two_dapo_steps_resumed_or_in_one_process_repeat_the_uninterrupted_run(
    workspace: Path, cold_started: Path
) -> None:
    model = f"actor_config.load={cold_started}"
    before, files_before = descendants(), left_files()
    finish(start("train", workspace, "whole", model))
    assert descendants() == before
    assert left_files() <= files_before

    steps = steps_of(workspace, "whole")
    assert len(steps) == 2
    for metrics in steps:
        assert metrics["training/rollout_probs_diff_max"] < 1e-3
        assert metrics["actor/pg_clipfrac"] == 0.0
        assert metrics["tools/code_interpreter/calls"] > 0
        assert metrics["actor/grad_norm"] > 0
    trajectories = [
        json.loads(line)
        for path in sorted((workspace / "runs" / "whole" / "trajectories").glob("step*"))
        for line in path.read_text().splitlines()
    ]
    assert len(trajectories) == 2 * 4 * 4
    assert any("42" in json.dumps(t) for t in trajectories)

    final = workspace / "runs" / "whole" / "checkpoints" / "step_000002"
    trained = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32).state_dict()
    begun = AutoModelForCausalLM.from_pretrained(cold_started, dtype=torch.float32).state_dict()
    assert trained.keys() == begun.keys()
    assert any(not torch.equal(trained[name], begun[name]) for name in trained)

    first = workspace / "runs" / "whole" / "checkpoints" / "step_000001"
    told = finish(
        start("train", workspace, "resumed", model, f"megatron_training.resume={first}", "--profile-step", "2")
    )
    check_profile(workspace / "runs" / "resumed" / "profile", told)
    resumed = steps_of(workspace, "resumed")[-1]
    process = start(
        "train", workspace, "alone", model, "--in-process", "megatron_training.prometheus_port=0",
        debugger=("-m", "pdb", "-c", "b tests/e2e/length_reward.py:8", "-c", "continue"),
        typed="p 'it is', trajectory.id, len(text) > 0\nclear 1\ncontinue\n",
    )  # fmt: skip
    found = scrape(process, workspace, "alone", lambda found: found.get("vllm:generation_tokens_total", {}).get("0"))
    assert "vllm:num_requests_running" in found
    told = finish(process)
    assert re.search(r"\('it is', 'prompts-\d+/\d', True\)", told), told
    for step in (1, 2):
        ours, theirs = (read_tokens(RunDirectory(workspace / "runs" / name), step) for name in ("alone", "whole"))
        assert [(r.trajectory_id, r.token_ids.tolist()) for r in ours] == [
            (r.trajectory_id, r.token_ids.tolist()) for r in theirs
        ]
        check_timeline(RunDirectory(workspace / "runs" / "whole"), step, steps[step - 1])
        check_timeline(RunDirectory(workspace / "runs" / "alone"), step, steps_of(workspace, "alone")[step - 1])
    scores = [read_scores(workspace, name) for name in ("alone", "whole")]
    assert scores[0] == scores[1]
    for name in ("critic/score/mean", "actor/pg_loss", "actor/grad_norm", "response_length/mean"):
        assert resumed[name] == pytest.approx(steps[1][name], rel=1e-4), name
        for alone, apart in zip(steps_of(workspace, "alone"), steps, strict=True):
            assert alone[name] == pytest.approx(apart[name], rel=1e-4), name


def read_scores(workspace: Path, name: str) -> list[tuple[str, float]]:
    files = sorted((workspace / "runs" / name / "trajectories").glob("step*"))
    return [(record["id"], record["score"]) for path in files for record in read_records(path)]


def check_profile(folder: Path, told: str) -> None:
    """Each rank has a trace and a table, and each process its stacks, where py-spy may read processes."""
    trace = json.loads(gzip.decompress((folder / "step_000002.rank_0.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert "aten::mm" in (folder / "step_000002.rank_0.txt").read_text()
    if "py-spy: this process may not read others" not in told:
        names = {path.name.split(".")[1].partition("-")[0] for path in folder.glob("*.speedscope.json")}
        assert names >= {"driver", "actor", "rollout", "reward", "engine"}, told


def check_timeline(run: RunDirectory, step: int, metrics: dict[str, float]) -> None:
    """The trace is sound, has the phases of the metrics with their times, and the clocks of all processes agree."""
    spans = step_spans(run, step)
    trace = check_trace(trace_events(spans))
    for name in (key.removeprefix("timing_s/") for key in metrics if key.startswith("timing_s/")):
        if name != "reward":
            assert trace.seconds("driver", name) == pytest.approx(metrics[f"timing_s/{name}"], abs=0.005), name
    own = [span for span in spans if span.name == "reward" and span.start < phase(spans, "gen").end]
    assert union_s(own) == pytest.approx(metrics["timing_s/reward"], abs=0.01)
    homes = {"update_on": "update_actor", "publish": "update_weights", "update_weights": "update_weights"}
    outside = [
        span
        for span in spans
        if span.who != "driver" and span.name in homes and not is_within(span, phase(spans, homes[span.name]))
    ]
    assert not outside
    assert all(is_within(s, phase(spans, "gen")) or s.start > phase(spans, "gen").end for s in spans if s.trajectory)


def phase(spans: list[Span], name: str) -> Span:
    return next(span for span in spans if (span.who, span.name) == ("driver", name))


def is_within(span: Span, outer: Span) -> bool:
    return outer.start - 0.005 <= span.start and span.end <= outer.end + 0.005


def union_s(spans: list[Span]) -> float:
    """Seconds in which at least one of the spans runs."""
    seconds, end = 0.0, 0.0
    for span in sorted(spans, key=lambda s: s.start):
        seconds += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return seconds


def test_recorded_tokens_are_the_samples_and_replaying_them_repeats_the_updates(
    workspace: Path, cold_started: Path
) -> None:
    """The first test's run, and its first step sampled again without an actor."""
    whole, model = RunDirectory(workspace / "runs" / "whole"), f"actor_config.load={cold_started}"
    rows = read_tokens(whole, 1)
    turns = {record["id"]: record["turns"] for record in read_records(whole.step_file(1))}
    assert {row.trajectory_id for row in rows} == turns.keys()
    for row in rows:
        sampled = "".join(piece for piece, mask in zip(row.pieces, row.loss_mask, strict=True) if mask)
        assert sampled.replace(MARK, "") == "".join(t["text"] for t in turns[row.trajectory_id]).replace(MARK, "")
        assert row.trained is not None and row.difference is not None and row.change is not None
        assert abs(row.difference).max() < 1e-3
        assert abs(row.change).max() > 0

    finish(start("train", workspace, "replayed", model, "--replay", str(whole.path)))
    again, steps = steps_of(workspace, "replayed"), steps_of(workspace, "whole")
    assert [m["step"] for m in again] == [1, 2]
    for replayed, recorded in zip(again, steps, strict=True):
        for name in ("actor/pg_loss", "actor/grad_norm", "actor/lr", "actor/entropy", "critic/score/mean"):
            assert replayed[name] == pytest.approx(recorded[name], abs=1e-6), name

    only = ["megatron_training.rollout_only=true", "megatron_training.train_iters=1", "rl_config.in_process=true"]
    finish(start("train", workspace, "sampled", model, *only))
    sampled_again = read_tokens(RunDirectory(workspace / "runs" / "sampled"), 1)
    assert [row.token_ids.tolist() for row in sampled_again] == [row.token_ids.tolist() for row in rows]
    assert all(row.trained is None for row in sampled_again)
    assert "actor/pg_loss" not in steps_of(workspace, "sampled")[0]


def test_engine_on_another_machine_repeats_the_run_on_one(workspace: Path, cold_started: Path) -> None:
    """Two Ray nodes stand for two machines: one trains, the other generates, and weights are copied between them."""
    one_machine = steps_of(workspace, "whole")
    tools = workspace / "tools.yaml"
    with EmbeddedSandbox() as sandbox, two_ray_nodes() as address:
        tools.write_text((ROOT / "configs/tools/retool_config.yaml").read_text().replace("embedded", sandbox.url, 1))
        finish(
            start(
                "train", workspace, "apart", f"actor_config.load={cold_started}",
                f"rl_config.ray_address={address}", "rl_config.use_integrated_worker=false",
                f"rl_config.tool_config_path={tools}",
            )
        )  # fmt: skip
    apart = steps_of(workspace, "apart")
    for ours, theirs in zip(apart, one_machine, strict=True):
        for name in ("critic/score/mean", "actor/pg_loss", "actor/grad_norm", "response_length/mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


Scraped = dict[str, dict[str, float]]
"""Values by name, and by replica or ''."""


def scrape(
    process: subprocess.Popen[str], workspace: Path, name: str, is_ready: Callable[[Scraped], object]
) -> Scraped:
    """Read the run's metrics for Prometheus until they are ready."""
    log, deadline = workspace / "runs" / name / "logs" / "driver.log", time.monotonic() + TIMEOUT_S
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        if log.exists() and (address := re.search(r"http://127\.0\.0\.1:\d+/metrics", log.read_text())):
            found: Scraped = {}
            with suppress(URLError):  # the run has just ended
                for family in text_string_to_metric_families(urlopen(address[0], timeout=60).read().decode()):
                    for sample in family.samples:
                        found.setdefault(sample.name, {})[sample.labels.get("replica", "")] = sample.value
            if is_ready(found):
                return found
        time.sleep(0.2)


@contextmanager
def two_ray_nodes() -> Iterator[str]:
    size = {"num_cpus": 2, "object_store_memory": 256 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        cluster.add_node(**size)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_sigterm_saves_and_an_interrupt_of_the_resumed_run_ends_every_process_within_seconds(workspace: Path) -> None:
    before = descendants()
    endless = ("megatron_training.train_iters=1000", "megatron_training.resume_mode=auto")
    process = start("train", workspace, "first", *endless, "megatron_training.save_interval=1000")
    with ended(process):
        saved = terminate_after_a_step(process, workspace)
    assert descendants() == before
    process = start("train", workspace, "first", *endless, "megatron_training.prometheus_port=0")
    deadline = time.monotonic() + TIMEOUT_S
    checkpoint = workspace / "runs" / "first-2" / "checkpoints" / f"step_{saved + 2:06d}"
    found = scrape(process, workspace, "first-2", lambda found: found.get("turnwise_step", {}).get("", 0) > saved)
    first = steps_of(workspace, "first-2")[saved]
    assert first["step"] == saved + 1
    assert set(found["turnwise_critic_score_mean"]) == {""}
    assert "turnwise_actor_grad_norm" in found
    assert found["turnwise_groups_wanted"][""] == 4
    assert found["turnwise_rollout_workers"][""] == 1
    assert found["vllm:generation_tokens_total"]["0"] >= first["rollout/num_trajectories"]
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    start_s = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start_s < 20
    assert process.returncode == 130
    assert f"resumed after step {saved} from {workspace}/runs/first/checkpoints/step_{saved:06d}" in output
    assert f"saved in {workspace}/runs/first-2, give the same command again." in output
    assert descendants() == before


def terminate_after_a_step(process: subprocess.Popen[str], workspace: Path) -> int:
    """Send SIGUSR1 to all workers of a run and SIGTERM to its driver; returns the step that it has saved."""
    deadline = time.monotonic() + TIMEOUT_S
    while not steps_of(workspace, "first"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for member in psutil.Process(process.pid).children(recursive=True):
        member.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    saved = len(steps_of(workspace, "first"))
    checkpoint = workspace / "runs" / "first" / "checkpoints" / f"step_{saved:06d}"
    assert [*checkpoint.parent.iterdir()] == [checkpoint]
    assert checkpoint_damages(checkpoint) == []
    assert f"SIGTERM: the run has ended. To go on after step {saved}, saved in" in output
    return saved
