"""The page of a run in a browser. Skipped where Playwright or Chromium is not installed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from rl.observability.page.export import write_page
from rl.observability.page.live import make_page_application
from rl.observability.run_directory import RunDirectory
from tests.samples import AtHand
from tests.unit.observability.examples import make_group
from tests.unit.observability.test_token_records import make_recording
from tools.bench.page import ARGUMENTS, CHROMIUM, browse, make_run

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not CHROMIUM.exists():
    pytest.skip(f"{CHROMIUM} is not installed", allow_module_level=True)

WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 420, "height": 800}
HOSTILE = "<script>hacked = 1</script><img src=x onerror='hacked = 1'><!-- \x1b[31mred \x00 \u202egnp.exe \u2028 &lt;"
"""A text that a page must show and not run: HTML, a terminal's escape code, NUL, and a reversed direction."""
SHOWN = "<script>hacked = 1</script><img src=x onerror='hacked = 1'><!-- ␛[31mred ␀ ⟨U+202E⟩gnp.exe \u2028 &lt;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = make_run(tmp_path / "run", 16)
    records = [json.loads(line) for line in made.step_file(1).read_text().splitlines()]
    for i, record in enumerate(records):
        record |= {"score": float(i % 2), "stop_reason": "length" if i == 3 else "finished", "ground_truth": "42"}
        for turn in record["turns"]:
            for result in turn["results"]:
                result["status"] = "timeout" if i == 5 else "ok"
    records[2]["turns"][0]["results"][0]["text"] = HOSTILE
    records[2]["turns"][1]["text"] = "an unmistakable remark: the needle is here"
    records[4]["turns"][1]["text"] = "needle, the (not the same order)"
    lone = '{"text": "x\\ud800y", '  # half of a surrogate pair, as some tools return
    lines = [json.dumps(record) for record in records]
    lines[6] = lines[6].replace('{"text": "', lone + '"unused": "', 1).replace('"wall_s": ', '"old": NaN, "wall_s": ')
    made.step_file(1).write_text("\n".join(lines) + "\n")
    return made


def opened(browser: Any, run: RunDirectory, place: str, **options: Any) -> Any:
    """The run's page, opened from disk; the test fails on any error or request."""
    path = run.path / "view.html"
    write_page(run, path, 64 << 20)
    page = browser.new_page(**{"viewport": WIDE} | options)
    page.set_default_timeout(10_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("request", lambda request: request.url.startswith("file:") or page.problems.append(request.url))
    page.goto(path.as_uri() + place)
    return page


def shown_ids(page: Any) -> list[str]:
    return [row.get_attribute("title") for row in page.locator(".row .prompt").all()]


def test_hostile_text_is_shown_and_not_run(browser: Any, run: RunDirectory) -> None:
    page = opened(browser, run, "#step_000001/train-0/2")
    page.locator(".said.tool pre", has_text="<script>").first.wait_for()
    assert page.locator(".said.tool pre").first.inner_text() == SHOWN
    page.get_by_role("button", name="record").click()
    page.locator(".json", has_text="hacked").wait_for()
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.evaluate("document.querySelectorAll('#page script, #page img').length") == 0
    page.evaluate("location.hash = '#step_000001/train-0/6'")
    page.locator("pre", has_text="x\ufffdy").wait_for()
    assert page.problems == []


def test_page_cannot_reach_the_network(browser: Any, run: RunDirectory) -> None:
    page = opened(browser, run, "#overview")
    page.locator(".chart").first.wait_for()
    attempt = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => 'refused')"
    assert page.evaluate(attempt) == "refused"
    assert "Content Security Policy" in " ".join(page.problems)


def test_filters_by_reward_stop_reason_tool_error_and_text(browser: Any, run: RunDirectory) -> None:
    page = opened(browser, run, "#trajectories")
    count = page.locator(".list strong")
    page.get_by_text("16 of 16").wait_for()
    page.get_by_role("button", name="length").click()
    page.get_by_text("1 of 16").wait_for()
    assert shown_ids(page) == ["train-0/3"]
    page.get_by_role("button", name="Clear all filters").click()
    page.locator(".facet button", has_text="timeout").click()
    page.get_by_text("1 of 16").wait_for()
    assert shown_ids(page) == ["train-0/5"]
    page.get_by_role("button", name="Clear all filters").click()
    page.get_by_label("Lowest").fill("0.5")
    page.get_by_text("8 of 16").wait_for()
    page.get_by_role("button", name="Clear all filters").click()
    page.get_by_label("Text", exact=True).fill("needl THE")
    page.get_by_text("2 of 16").wait_for()
    assert shown_ids(page) == ["train-0/2", "train-0/4"]
    page.get_by_label("Text", exact=True).fill('"the needle"')
    page.get_by_text("1 of 16").wait_for()
    assert shown_ids(page) == ["train-0/2"]
    assert count.inner_text() == "1"
    assert page.problems == []


def test_keys_move_through_the_list_and_the_address_follows(browser: Any, run: RunDirectory) -> None:
    page = opened(browser, run, "#trajectories?stop=finished")
    page.get_by_text("15 of 16").wait_for()
    for _ in range(4):
        page.keyboard.press("j")
    page.get_by_role("heading", name="train-0/4").wait_for()  # train-0/3 is filtered out
    assert page.url.endswith("#step_000001/train-0/4?stop=finished")
    page.keyboard.press("J")
    page.get_by_role("heading", name="train-1/0").wait_for()
    page.keyboard.press("k")
    page.get_by_role("heading", name="train-0/7").wait_for()
    page.keyboard.press("3")
    page.get_by_role("img", name="Timeline of 8 lanes").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("remark")
    page.get_by_text("1 of 16").wait_for()
    page.go_back()
    page.get_by_role("heading", name="train-0/7").wait_for()
    assert page.problems == []


def test_tokens_are_colored_by_what_is_known_of_them(browser: Any, tmp_path: Path) -> None:
    run = make_recording(tmp_path)
    run.config_file.write_text("")
    run.trajectories.mkdir()
    AtHand().write_trajectories(run.step_file(5), [make_group(prompt_id="train-1"), make_group(prompt_id="train-2")])
    page = opened(browser, run, "#step_000005/train-1/0?tab=tokens")
    tokens = page.locator(".token-text > span")
    tokens.first.wait_for()
    authors = ["by-prompt"] * 3 + ["by-model"] * 2 + ["by-tool", "by-model"]
    assert [tokens.nth(i).get_attribute("class") for i in range(7)] == authors
    page.get_by_role("button", name="engine − actor").click()
    page.locator(".legend", has_text="far from 0 means that they disagree").wait_for()
    gray = [tokens.nth(i).get_attribute("class") == "none" for i in range(7)]
    assert gray == [True, True, True, False, False, True, False]
    tokens.nth(6).hover()
    readout = page.locator(".readout").inner_text()
    assert "token 6 “<2>” · id 2 · model · rollout_logprobs -0.3" in readout
    assert "old_logprobs -0.5" in readout
    page.keyboard.press("j")
    page.get_by_role("heading", name="train-2/0").wait_for()
    tokens.first.wait_for()
    assert page.locator(".modes button").all_inner_texts() == ["author", "log-prob"]  # it was not trained on
    assert page.problems == []


def test_timeline_of_a_step_has_a_lane_for_each_at_work(browser: Any, run: RunDirectory) -> None:
    spans = [
        {"who": "driver", "name": "step", "start": 100.0, "end": 110.0},
        {"who": "driver", "name": "gen", "start": 100.0, "end": 104.0},
        {"who": "actor 1", "name": "forward", "start": 104.0, "end": 108.0},
        {"who": "actor 0", "name": "forward", "start": 104.0, "end": 109.0},
    ]
    run.timeline_file(1).parent.mkdir()
    run.timeline_file(1).write_text(json.dumps(spans))
    page = opened(browser, run, "#timeline")
    canvas = page.get_by_role("img", name="Timeline of 3 lanes over 10.0 s")
    canvas.wait_for()
    box = canvas.bounding_box()
    canvas.hover(position={"x": 132 + (box["width"] - 132) * 0.85, "y": 22 + 22 * 1.5})  # the second lane, at 8.5 s
    readout = page.locator(".readout")
    assert readout.inner_text() == "forward, actor 0: 5.00 s, from 4.00 s to 9.00 s"
    page.get_by_role("button", name="Zoom in").click()
    canvas.hover(position={"x": 140, "y": 22 + 11})  # zoomed to 2.5 s to 7.5 s
    assert readout.inner_text() == "gen, driver: 4.00 s, from 0.00 s to 4.00 s"
    assert page.problems == []


def test_questions_that_changed_sides_open_their_answers(browser: Any, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config_file.write_text("")
    run.trajectories.mkdir()
    for step, scores in {0: (0.0, 1.0, 0.0), 4: (1.0, 1.0, 0.5)}.items():
        groups = [make_group(prompt_id=f"test-{i}", score=score) for i, score in enumerate(scores)]
        AtHand().write_trajectories(run.evaluation_file(step), groups)
    key = "val-core/all/acc"
    figures = {f"{key}/mean@1": 0.3, f"{key}/ci95_low": 0.1, f"{key}/ci95_high": 0.5, "val-core/all/num_questions": 3.0}
    run.metrics_file.write_text("".join(json.dumps({"step": step, **figures}) + "\n" for step in (0, 4)))
    page = opened(browser, run, "#evaluations")
    assert page.get_by_role("button", name="became wrong").inner_text() == "became wrong 0"
    page.get_by_role("button", name="became right 1").click()
    assert page.locator(".question").count() == 1
    assert page.get_by_role("button", name="always wrong").inner_text() == "always wrong 1"
    assert page.get_by_role("cell", name="0.300 0.10–0.50").count() == 2
    page.locator(".question button").nth(1).click()
    page.get_by_role("heading", name="test-0/0").wait_for()
    assert page.url.endswith("#eval_000004/test-0/0")
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_side_by_side_fits_a_narrow_screen(browser: Any, run: RunDirectory, scheme: str) -> None:
    page = opened(browser, run, "#step_000001/train-0/1?tab=group", viewport=NARROW, color_scheme=scheme)
    page.locator(".beside .column").nth(1).wait_for()
    assert page.locator(".beside h2").all_inner_texts()[0].startswith("/1 score 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.get_by_label("Back to the list").click()
    page.get_by_text("16 of 16").wait_for()
    assert page.problems == []


def test_page_says_what_was_left_out(browser: Any, run: RunDirectory) -> None:
    path = run.path / "small.html"
    size = write_page(run, path, 1 << 10)
    page = browser.new_page(viewport=WIDE)
    page.goto(path.as_uri())
    assert size.num_left_out == 16
    page.get_by_text("16 of 16 trajectories are in the list and in every count, but cannot be opened here").wait_for()
    page.goto(path.as_uri() + "#step_000001/train-0/2")
    page.get_by_text("This trajectory was left out").wait_for()


def test_served_page_shows_new_steps(browser: Any, run: RunDirectory) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = TestServer(make_page_application(run))
    try:
        asyncio.run_coroutine_threadsafe(server.start_server(), loop).result(20)
        page = browser.new_page(viewport=WIDE)
        page.goto(str(server.make_url("/")) + "#trajectories")
        page.get_by_text("16 of 16").wait_for()
        run.step_file(2).write_text(run.step_file(1).read_text())
        page.get_by_text("32 of 32").wait_for()
        page.keyboard.press("j")
        page.locator(".conversation").wait_for()
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


def test_benchmark_of_the_page_measures_every_figure(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1000)
    write_page(run, tmp_path / "page.html", 64 << 20)
    page = browser.new_page(viewport=WIDE)
    page.goto((tmp_path / "page.html").as_uri() + "#trajectories", wait_until="commit")
    figures = {figure.name: figure for figure in browse(page, 1000)}
    assert all(figure.value > 0 for figure in figures.values())
    assert figures["first paint"].value < 2
