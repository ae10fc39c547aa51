"""The page of a run, without a browser; tests/e2e/test_page.py opens it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from rl.__main__ import main
from rl.config.schema import Config
from rl.errors import DataError
from rl.observability import viewer
from rl.observability.page import pack_chunk, pack_json, render_page
from rl.observability.page.details import step_details
from rl.observability.page.export import write_page
from rl.observability.page.live import LiveRun, make_page_application
from rl.observability.page.overview import metric_columns
from rl.observability.page.rows import RowIndex
from rl.observability.page.words import WordIndex
from rl.observability.run_directory import RunDirectory
from rl.observability.timeline import write_spans
from rl.observability.trajectories import to_record
from rl.types import Span, StopReason, ToolStatus
from tests.samples import AtHand
from tests.unit.observability.examples import make_group, make_trajectory
from tests.unit.observability.test_token_records import make_recording

ROOT = Path(__file__).resolve().parents[3]
LONG_AGO = 1e9


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    config = Config()
    config.megatron_training.output_dir = str(tmp_path)
    config.megatron_training.run_name = "run"
    made = RunDirectory.create(config, "tiny")
    write_step(made, made.step_file(1), ["train-1", "train-2"])
    write_step(made, made.evaluation_file(1), ["test-1"])
    made.metrics_file.write_text('{"step": 1, "critic/score/mean": 0.25}\n')
    return made


def write_step(run: RunDirectory, path: Path, prompts: list[str]) -> None:
    AtHand().write_trajectories(path, [make_group(prompt_id=prompt) for prompt in prompts])
    os.utime(path, (LONG_AGO, LONG_AGO))


def text_record(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "turns": [], "ground_truth": ""}


def read_words(packed: bytes) -> dict[str, list[int]]:
    """Undo `WordIndex.pack`, one byte at a time."""
    header, _, rest = packed.partition(b"\n")
    numbers, value, shift = [], 0, 0
    size = json.loads(header)["vocabulary_bytes"]
    for byte in rest[size:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    words = rest[:size].decode().split("\n")
    found, at = {}, len(words)
    for word, count in zip(words, numbers, strict=False):
        found[word] = np.cumsum(numbers[at : at + count]).tolist()
        at += count
    assert at == len(numbers)
    return found


def test_word_index_knows_the_trajectories_of_each_word() -> None:
    index = WordIndex()
    for i in range(20_001):
        index.add(text_record("Always, rare_1!" if i in (0, 130, 20_000) else "ALWAYS"))
    words = read_words(index.pack())
    assert words["rare_1"] == [0, 130, 20_000]  # differences of one, two and three bytes
    assert words["always"] == list(range(20_001))
    assert set(words) == {"always", "rare_1"}


def test_word_index_covers_prompt_turns_results_answer_and_errors() -> None:
    index = WordIndex()
    index.add(to_record(make_trajectory(score=None)))
    assert {"2", "tool_call", "calc", "4", "boxed", "boom"} <= set(read_words(index.pack()))


def test_empty_word_index_can_be_packed() -> None:
    assert json.loads(WordIndex().pack()) == {"num_words": 0, "vocabulary_bytes": 0}


def test_row_index_has_a_column_entry_for_each_trajectory() -> None:
    index = RowIndex()
    index.add_file("step_000001")
    index.add(to_record(make_trajectory(status=ToolStatus.TIMEOUT)))
    index.add(to_record(make_trajectory(score=0.5, index=1, stop_reason=StopReason.LENGTH)))
    index.add_file("step_000002")
    index.add(to_record(make_trajectory(score=None)))
    found = index.to_json()
    names = found["names"]
    assert found["files"] == [
        {"name": "step_000001", "first": 0, "count": 2},
        {"name": "step_000002", "first": 2, "count": 1},
    ]
    assert [(g["prompt"], g["first"], g["count"]) for g in found["groups"]] == [("train-1", 0, 2), ("train-1", 2, 1)]
    assert found["groups"][0]["preview"] == "2+2?"
    columns = found["columns"]
    assert columns["score"] == [1.0, 0.5, None]
    assert columns["is_correct"] == [1, 0, 0]
    assert (columns["turns"], columns["calls"], columns["sampled"]) == ([2, 2, 2], [1, 1, 1], [3, 3, 3])
    assert columns["generate_s"] == [0.4, 0.4, 0.4]
    assert [names[code] for code in columns["stop"]] == ["finished", "length", "finished"]
    assert found["endings"] == ["\\boxed{4}"] * 3
    assert found["rewards"] == {"right": [1.0, 0.5, None]}
    assert [[names[code] for code in codes] for codes in found["tool_errors"]] == [["timeout"], [], []]


def test_row_index_judges_each_trajectory_by_its_own_first_reward() -> None:
    index = RowIndex()
    index.add_file("eval_000001")
    judged = [
        ({"math": 1.0}, None), ({"code": 1.0, "math": 0.0}, None), ({"math": 0.0, "code": 1.0}, None),
        ({"math": 1.0}, "boom"), ({}, None), ({"code": 0.9999999}, None), ({"code": 0.999}, None),
    ]  # fmt: skip
    for number, (rewards, error) in enumerate(judged):
        record = to_record(make_trajectory(index=number)) | {"rewards": rewards, "reward_error": error}
        index.add(record)
    assert index.to_json()["columns"]["is_correct"] == [1, 1, 0, 0, 0, 1, 0]


def test_metric_columns_join_the_lines_of_a_step() -> None:
    rows = [{"step": 2, "a": 1.0}, {"step": 1, "a": 3.0}, {"step": 2, "b": 2.0}, {"step": 2, "a": 4.0}]
    assert metric_columns(rows) == ([1, 2], {"a": [3.0, 4.0], "b": [None, 2.0]})


def test_page_is_inert_whatever_its_title_and_chunks_contain() -> None:
    hostile = "</script><script>alert(1)</script><!--\u2028"
    chunks = [("run", pack_json(hostile))]
    page = b"".join(render_page(hostile, script="let a = 1;", style="b {}", chunks=chunks)).decode()
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert "script-src 'sha256-" in page.replace("&#x27;", "'")
    assert "unsafe" not in page
    assert read_chunk(page, "run") == hostile


def test_script_that_would_end_its_element_is_refused() -> None:
    with pytest.raises(AssertionError, match="would end"):
        b"".join(render_page("t", script="'</script>'", style=""))


def read_chunk(page: str, name: str) -> Any:
    found = re.search(f'id="chunk:{name}">([^<]*)</script>', page)
    assert found, name
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_exported_page_has_every_trajectory(run: RunDirectory, tmp_path: Path) -> None:
    size = write_page(run, tmp_path / "page.html", 1 << 20)
    page = (tmp_path / "page.html").read_text()
    assert (size.num_trajectories, size.num_left_out, size.num_bytes) == (3, 0, len(page.encode()))
    head = read_chunk(page, "run")
    assert head["metrics"]["critic/score/mean"] == [0.25]
    assert head["contents"]["blocks"] == [{"num_rows": 3, "records": [2, 1]}]
    assert [file["name"] for file in read_chunk(page, "rows/0")["files"]] == ["step_000001", "eval_000001"]
    assert not list(tmp_path.glob("*.partial"))


def test_page_at_its_limit_keeps_the_newest_and_says_what_is_left_out(run: RunDirectory, tmp_path: Path) -> None:
    whole = write_page(run, tmp_path / "page.html", 1 << 20)
    indexes = sum(
        len(part) for name, part in chunk_texts(tmp_path / "page.html") if name.split("/")[0] in ("rows", "words")
    )
    newest = next(len(part) for name, part in chunk_texts(tmp_path / "page.html") if name == "records/0/1")
    size = write_page(run, tmp_path / "page.html", indexes + newest)
    head = read_chunk((tmp_path / "page.html").read_text(), "run")
    assert (whole.num_left_out, size.num_trajectories, size.num_left_out) == (0, 3, 2)
    assert head["contents"]["left_out"] == ["records/0/0"]
    assert head["contents"]["num_left_out"] == 2


def test_page_of_a_killed_run_has_the_rows_before_the_torn_one(
    run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = run.step_file(1)
    step.write_bytes(step.read_bytes()[:-20])
    size = write_page(run, tmp_path / "page.html", 1 << 20)
    rows = read_chunk((tmp_path / "page.html").read_text(), "rows/0")
    assert size.num_trajectories == 2
    assert [(file["name"], file["count"]) for file in rows["files"]] == [("step_000001", 1), ("eval_000001", 1)]
    assert f"{step}, row 2: not JSON" in caplog.text


def chunk_texts(path: Path) -> list[tuple[str, str]]:
    return re.findall(r'id="chunk:([^"]*)">([^<]*)</script>', path.read_text())


def test_view_writes_the_page_into_the_run(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert viewer.main([str(run.path), "--html"]) == 0
    assert f"{run.path / 'view.html'}: 3 trajectories, 0." in capsys.readouterr().out
    assert (run.path / "view.html").read_bytes().startswith(b"<!doctype html>")


async def test_server_follows_the_run_and_refuses_other_pages(run: RunDirectory) -> None:
    async with TestClient(TestServer(make_page_application(run))) as client:
        page = await client.get("/")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert 'data-chunks="/chunks/"' in await page.text()
        assert (await blocks_of(client, 2))[1] == {"num_rows": 1, "records": [1]}
        write_step(run, run.step_file(2), ["train-3"])
        await blocks_of(client, 3)
        assert (await chunk_of(client, "rows/2"))["groups"][0]["prompt"] == "train-3"
        assert (await chunk_of(client, "records/2/0"))["id"] == "train-3/0"
        for name in ("rows/9", "records/0/9", "rows/x", "tokens/1/0", "records/-1/0"):
            assert (await client.get(f"/chunks/{name}")).status == 404, name
        other = {"Origin": "http://evil.example"}
        assert (await client.get("/chunks/run", headers=other)).status == 403
        assert (await client.get("/", headers={"Host": "evil.example"})).status == 421


async def chunk_of(client: TestClient[Any, Any], name: str) -> Any:
    answer = await client.get(f"/chunks/{name}")
    assert answer.status == 200, name
    return json.loads(gzip.decompress(await answer.read()))


async def blocks_of(client: TestClient[Any, Any], num: int) -> list[dict[str, Any]]:
    """Wait until the server has read so many files."""
    async with asyncio.timeout(20):
        while len(blocks := (await chunk_of(client, "run"))["contents"]["blocks"]) < num:
            await asyncio.sleep(0.05)
    return blocks


def test_details_have_the_tokens_of_each_group(tmp_path: Path) -> None:
    first, second = step_details(make_recording(tmp_path))
    assert (first.name, first.covers) == ("tokens/5/0", ["train-1/0"])
    assert (second.name, second.covers) == ("tokens/5/1", ["train-2/0"])
    (row,), (left_out,) = json.loads(first.make()), json.loads(second.make())
    assert row["pieces"] == ["<1>", "<2>", "<3>", "<4>", "<5>", "<7>", "<2>"]
    assert (row["loss_mask"], row["prompt_length"]) == ([0, 0, 0, 1, 1, 0, 1], 3)
    assert row["values"]["rollout_logprobs"] == [0, 0, 0, -0.1, -0.2, 0, -0.3]
    assert row["values"]["old_logprobs"] == [0, 0, 0, -0.125, -0.25, 0, -0.5]
    assert "ref_logprobs" not in row["values"]
    assert set(left_out["values"]) == {"rollout_logprobs", "versions"}


def test_page_can_be_made_after_a_trace_was_written(run: RunDirectory) -> None:
    write_spans(run.timeline_file(2), [Span("driver", "step", 1.0, 2.0)])
    assert main(["timeline", str(run.path)]) == 0
    assert (run.path / "timeline/step_000002.trace.json").is_file()
    assert main(["view", str(run.path), "--html"]) == 0
    head = read_chunk((run.path / "view.html").read_text(), "run")
    assert head["contents"]["details"] == {"timeline/2": []}
    live = LiveRun(run)
    assert list(json.loads(gzip.decompress(live.chunk("run")))["contents"]["details"]) == ["timeline/2"]
    before = live.chunk("state")
    assert main(["timeline", str(run.path), "-o", str(run.path / "timeline/step_000003.trace.json")]) == 0
    assert live.chunk("state") == before


@pytest.mark.parametrize(
    ("damaged", "left"),
    [
        ("timeline/step_000002.json", ["timeline/1", "tokens/5/0", "tokens/5/1"]),
        ("trajectories/step_000002.jsonl", ["timeline/1", "tokens/5/0", "tokens/5/1"]),
        ("tokens/step_000005.parquet", ["timeline/2", "timeline/1"]),
        ("tokens/step_000005.rank_1.parquet", ["timeline/2", "timeline/1"]),
    ],
)
def test_page_of_a_killed_run_leaves_out_what_a_damaged_file_had(
    run: RunDirectory, damaged: str, left: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        write_spans(run.timeline_file(step), [Span("driver", "step", 1.0, 2.0)])
    write_step(run, run.step_file(2), ["train-3"])
    make_recording(run.path)
    path = run.path / damaged
    path.write_bytes(path.read_bytes()[:-20])
    write_page(run, run.path / "view.html", 1 << 20)
    head = read_chunk((run.path / "view.html").read_text(), "run")
    assert list(head["contents"]["details"]) == left
    assert sum(str(path) in record.getMessage() and "leaves" in record.getMessage() for record in caplog.records) == 1
    live = LiveRun(run)
    names = json.loads(gzip.decompress(live.chunk("run")))["contents"]["details"]
    assert set(left) <= set(names)
    for name in names.keys() - set(left):
        with pytest.raises(DataError, match=re.escape(str(path))):
            live.chunk(name)


def test_packed_chunks_are_the_same_for_the_same_content() -> None:
    assert pack_chunk(b"abc") == pack_chunk(b"abc")


def test_committed_assets_were_built_from_these_sources() -> None:
    sources = ROOT / "tools" / "page"
    names = sorted(["build.mjs", "package-lock.json", *(f"src/{path.name}" for path in (sources / "src").iterdir())])
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode() + b"\0" + (sources / name).read_bytes())
    built_from = (ROOT / "rl/observability/page/assets/SOURCES.sha256").read_text().strip()
    assert found.hexdigest() == built_from, "run npm run build in tools/page"


def test_committed_assets_are_what_their_sources_give(tmp_path: Path) -> None:
    sources = ROOT / "tools" / "page"
    if shutil.which("node") is None or not (sources / "node_modules").is_dir():
        pytest.skip("node, or tools/page/node_modules (npm ci), is not installed")
    subprocess.run(["node", "build.mjs", str(tmp_path)], cwd=sources, check=True, timeout=60, capture_output=True)
    for built in tmp_path.iterdir():
        assert built.read_bytes() == (ROOT / "rl/observability/page/assets" / built.name).read_bytes(), (
            f"{built.name}: run npm run build in tools/page"
        )


def test_installed_package_has_the_assets(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib"]
    subprocess.run([*command, str(tmp_path / "lib")], cwd=ROOT, check=True, timeout=120, capture_output=True)
    assets = {path.name for path in (tmp_path / "lib/rl/observability/page/assets").iterdir()}
    assert {"viewer.js", "viewer.css", "charts.js", "charts.css", "LICENSES.txt"} <= assets
