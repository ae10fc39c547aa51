"""A few real training steps: their time, the time of a publish, and the memory of all processes together."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from rl.config.load import load_config
from rl.types import Trajectory
from tools.bench.figures import Figure, write_json

_NUM_STEPS = 4
_POLL_S = 2.0
_STEP_GOAL_S, _PUBLISH_GOAL_S, _MEMORY_GOAL_GB = 45.0, 0.5, 14.0


def alternating(trajectory: Trajectory) -> float:
    """A reward in which the samples of every group differ, so that a step learns from all of them."""
    return float(trajectory.sample_index % 2)


def measure(config_name: str, overrides: list[str]) -> list[Figure]:
    """Run `rl train` and read its metrics, except those of the first step, which warms up.

    The configuration's rewards are computed as in training, but only `alternating` counts, so the work of a step does
    not depend on how good the model is. The number of calls and tokens does: set `actor_config.load`.
    """
    rewards = load_config(config_name, overrides).rl_config.verifier_function
    with tempfile.TemporaryDirectory(prefix="turnwise-bench-") as directory:
        settings = {
            "train_iters": _NUM_STEPS,
            "output_dir": directory,
            "run_name": "bench",
            "eval_before_train": "false",
            "eval_after_train": "false",
        }
        command = [sys.executable, "-m", "rl", "train", "--config-name", config_name]
        command += [f"megatron_training.{key}={value}" for key, value in settings.items()] + overrides
        command += [
            f"rl_config.verifier_function=[{','.join([*rewards, 'tools.bench.step:alternating'])}]",
            f"rl_config.verifier_weight={[0.0] * len(rewards) + [1.0]}",
        ]
        process = subprocess.Popen(command, stdout=sys.stderr)
        peak = _peak_memory_gb(process)
        if process.returncode:
            raise SystemExit(process.returncode)
        lines = (Path(directory) / "bench" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][1:]
    step_s = statistics.median(s["timing_s/step"] for s in steps)
    publish_s = statistics.median(s["timing_s/update_weights"] for s in steps)
    turns = statistics.mean(s["num_turns/mean"] for s in steps)
    tokens = statistics.median(s["perf/total_num_tokens"] for s in steps)
    return [
        Figure(
            "step",
            step_s,
            "s",
            _STEP_GOAL_S,
            at_least=False,
            detail=f"{tokens:.0f} tokens, {turns:.1f} turns, median of {len(steps)} steps",
        ),
        Figure("publish", publish_s, "s", _PUBLISH_GOAL_S, at_least=False, detail="actor to engine, without checksum"),
        Figure("memory", peak, "GB", _MEMORY_GOAL_GB, at_least=False, detail="peak PSS of all processes of training"),
    ]


def _peak_memory_gb(process: subprocess.Popen[bytes]) -> float:
    """Poll the proportional set size of a process tree until it ends; shared pages count once."""
    peak = 0.0
    root = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for member in family:
            try:
                total += member.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        peak = max(peak, total / 1e9)
        time.sleep(_POLL_S)
    process.wait()
    return peak


if __name__ == "__main__":
    name, output, *extra = sys.argv[1:]
    write_json(measure(name, extra), Path(output))
