"""The page of a run with 100,000 trajectories in headless Chromium: seconds to paint and to filter, and memory."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rl.observability.page.export import write_page
from rl.observability.run_directory import RunDirectory
from tools.bench.figures import Figure, write_json

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox"]  # a container's root has no sandbox

_NUM_TRAJECTORIES = 100_000
_GROUP, _GROUPS_PER_STEP = 8, 125
_SEED = 7
_MAX_MB = 256
_TASKS = ("chain_sum", "count_bits", "gcd", "products", "search_qa", "spell_backward")
_STATUSES = ("ok",) * 8 + ("error", "timeout", "parse_error")
_STOPS = ("finished",) * 9 + ("length", "tool_limit")


def make_run(folder: Path, num_trajectories: int) -> RunDirectory:
    """Write a run directory as a training run leaves it, with random texts of realistic length.

    Args:
        folder: Created.
        num_trajectories: A multiple of the group size; an even share for each step.
    """
    run = RunDirectory(folder)
    run.trajectories.mkdir(parents=True)
    run.config_file.write_text("rl_config:\n  n_samples_per_prompt: 8\n")
    rng = random.Random(_SEED)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(20_000)]
    weights = [1 / (i + 3) for i in range(len(words))]
    pool = rng.choices(words, weights, k=1_000_000)
    num_groups = num_trajectories // _GROUP
    for step, first in enumerate(range(0, num_groups, _GROUPS_PER_STEP), start=1):
        with run.step_file(step).open("w") as stream:
            for group in range(first, min(first + _GROUPS_PER_STEP, num_groups)):
                prompt = _text(rng, pool, 40)
                for sample in range(_GROUP):
                    stream.write(json.dumps(_record(rng, pool, f"train-{group}/{sample}", prompt)) + "\n")
        with run.metrics_file.open("a") as stream:
            stream.write(json.dumps({"step": step, "time": 1e9 + 60.0 * step, **_metrics(rng, step)}) + "\n")
    return run


def _record(rng: random.Random, pool: list[str], name: str, prompt: str) -> dict[str, Any]:
    score = float(rng.random() < 0.5)
    turns = [_turn(rng, pool, is_last=i == 2) for i in range(3)]
    return {
        "id": name,
        "data_source": rng.choice(_TASKS),
        "messages": [{"role": "user", "content": prompt}],
        "ground_truth": str(rng.randrange(10**6)),
        "turns": turns,
        "stop_reason": rng.choice(_STOPS),
        "score": score,
        "rewards": {"math_verify": score, "length": round(rng.random(), 4)},
        "reward_error": None,
        "num_sampled": 400,
        "response_length": 600,
        "policy_versions": [1],
        "wall_s": round(rng.uniform(1, 60), 4),
    }


def _turn(rng: random.Random, pool: list[str], *, is_last: bool) -> dict[str, Any]:
    code = f"x = {rng.randrange(10**9)}\nprint({' + '.join(str(rng.randrange(10**5)) for _ in range(6))})"
    call = {"name": "code_interpreter", "arguments": {"code": code}, "raw": code, "error": None}
    result = {
        "name": "code_interpreter", "text": f"{rng.randrange(10**7)}\n{_text(rng, pool, 20)}",
        "status": rng.choice(_STATUSES), "is_truncated": False, "queue_s": 0.01, "run_s": 0.2, "reward": None,
    }  # fmt: skip
    return {
        "text": f"{_text(rng, pool, 90)}\n{'' if is_last else code}",
        "num_tokens": 130,
        "calls": [] if is_last else [call],
        "results": [] if is_last else [result],
        "generate_s": round(rng.uniform(0.5, 10), 4),
        "tool_s": 0.21,
    }


def _text(rng: random.Random, pool: list[str], num_words: int) -> str:
    start = rng.randrange(len(pool) - num_words)
    return " ".join(pool[start : start + num_words])


def _metrics(rng: random.Random, step: int) -> dict[str, float]:
    named = {"critic/score/mean": step / 200, "actor/entropy": 1 / step, "actor/grad_norm": rng.random()}
    return named | {f"timing_s/part_{i}": rng.random() for i in range(100)}


def measure(num_trajectories: int = _NUM_TRAJECTORIES) -> list[Figure]:
    """Write the page of a generated run and open it.

    Args:
        num_trajectories: Trajectories of the run.

    Returns:
        Seconds to write the page, its size, and what the browser needs; one figure that says so without a browser.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return [Figure("page: not measured", 0, "", detail="playwright is not installed")]
    if not CHROMIUM.exists():
        return [Figure("page: not measured", 0, "", detail=f"{CHROMIUM} is not installed")]
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-page-") as directory:
        run = make_run(Path(directory) / "run", num_trajectories)
        path = Path(directory) / "page.html"
        start = time.perf_counter()
        size = write_page(run, path, _MAX_MB << 20)
        written_s = time.perf_counter() - start
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(path.as_uri() + "#trajectories", wait_until="commit")
            figures = browse(page, num_trajectories)
            browser.close()
    detail = f"{size.num_trajectories:,} trajectories, {size.num_left_out:,} left out"
    return [
        Figure("page written", written_s, "s", detail=detail),
        Figure("page size", size.num_bytes / 2**20, "MiB"),
        *figures,
    ]


def browse(page: Page, num_trajectories: int) -> list[Figure]:
    """Measure a page that has begun to load: paint, filters, and memory.

    Args:
        page: At `#trajectories`.
        num_trajectories: What the list must show before a filter.
    """
    page.locator(".list strong", has_text=f"{num_trajectories:,}").wait_for()
    shown_ms = page.evaluate("performance.now()")
    paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.wait_for_load_state("load")
    figures = [
        Figure("first paint", paint_ms / 1000, "s", 2.0, at_least=False),
        Figure("list shown", shown_ms / 1000, "s", 2.0, at_least=False),
        Figure("page loaded", page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000, "s"),
    ]
    page.wait_for_timeout(1500)  # a reader looks at the list before typing
    typed = {"text (first)": "zq", "text, rare": "12345", "text, common": "e", "text, two words": "print 12345"}
    for name, text in typed.items():
        ms = page.evaluate(_FILTER, text)
        figures.append(Figure(f"filter: {name}", ms / 1000, "s", 0.5, at_least=False, detail=_shown(page)))
    page.evaluate(_FILTER, "")
    ms = page.evaluate(_PRESS, "error")
    figures.append(Figure("filter: tool error", ms / 1000, "s", 0.5, at_least=False, detail=_shown(page)))
    memory = browser_memory()
    page_mb = max(size for kind, size in memory if kind == "renderer") / 2**20  # the browser keeps empty ones ready
    total = f"all {len(memory)} processes of the browser: {sum(size for _, size in memory) / 2**20:.0f} MiB"
    return [*figures, Figure("memory of the page", page_mb, "MiB", 500, at_least=False, detail=total)]


_WAIT = """
const shown = () => document.querySelector('.list > header').textContent;
const changed = (before) => new Promise((resolve) => {
  const painted = () => requestAnimationFrame(() => setTimeout(resolve));
  const look = () => (shown() !== before ? painted() : requestAnimationFrame(look));
  look();
});
"""
_FILTER = f"""async (text) => {{ {_WAIT}
  const input = document.getElementById('search');
  const before = shown(), start = performance.now();
  input.value = text;
  input.dispatchEvent(new Event('input', {{ bubbles: true }}));
  await changed(before);
  return performance.now() - start;
}}"""
_PRESS = f"""async (name) => {{ {_WAIT}
  const buttons = [...document.querySelectorAll('.facet button')];
  const button = buttons.find((b) => b.querySelector('.name').textContent === name);
  const before = shown(), start = performance.now();
  button.click();
  await changed(before);
  return performance.now() - start;
}}"""


def _shown(page: Page) -> str:
    return page.evaluate("document.querySelector('.list > header > span').textContent")


def browser_memory() -> list[tuple[str, int]]:
    """Kind and bytes of each of the browser's processes, as PSS: memory that several share is divided among them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
            if not command or "chrom" not in command[0]:
                continue
            kind = next((a.removeprefix("--type=") for a in command if a.startswith("--type=")), "browser")
            found.append((kind, process.memory_full_info().pss))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


if __name__ == "__main__":
    _, output, *_overrides = sys.argv[1:]
    write_json(measure(), Path(output))
