"""Checks of a configuration on this machine: those of the preflight, the disk, and two tokens of the engine."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from rl.cluster.embedded_services import embedded_services
from rl.config.load import Composed
from rl.config.model_facts import count_parameters, find_model_facts
from rl.config.problems import Problem, Severity, without_consequences
from rl.config.schema import Config
from rl.doctor.findings import Check, Finding, Status, fail, ok, warn
from rl.doctor.generation import MARK, Generated, engine_variables
from rl.doctor.machine import check_disk
from rl.inference.output_tail import first_error
from rl.preflight import run_checks
from rl.run.auto_resume import with_checkpoint
from rl.run.parts import RunParts
from rl.tools.registry import load_toolbox

_SERVICE_DEADLINE_S = 60.0
_DATA_DEADLINE_S = 300.0
_ENGINE_DEADLINE_S = 600.0
_STATUSES = {Severity.ERROR: Status.FAIL, Severity.WARNING: Status.WARN}
_MEANINGS = {
    "configuration": "its keys fit together",
    "recording": "its files are whole, and its tokens are the model's",
    "rewards": "they load and can be called",
    "tools and services": "the tool YAML loads; services that it names answer",
    "environment": "environment and rollout function load",
    "engine": "its sizes fit the device",
    "run directory": "it can be made; a checkpoint to resume is whole",
    "devices": "there are as many as the run needs",
    "memory": "the estimate fits into the free memory",
    "data": "every row can be read and scored",
    "model and chat template": "weights are whole; the template and the parser passed the self-test",
}
"""What an ok of each check of the preflight means."""


def configuration_checks(composed: Composed[Config], *, with_engine: bool) -> list[Check]:
    """The checks of a configuration, quick ones first.

    Args:
        composed: The configuration and the problems of single keys.
        with_engine: Generate two tokens.
    """
    config = with_checkpoint(composed.config)
    checks = [
        Check(name, partial(_as_findings, check, name, composed.problems), _DATA_DEADLINE_S)
        for name, check in run_checks(RunParts(config), composed.given, is_strict=True).items()
    ]
    checks.append(Check("disk", partial(check_output, config)))
    if config.megatron_training.replay:  # it starts no engine and no tool
        return checks
    if config.rl_config.multi_turn_enable and config.rl_config.tool_config_path:
        advice = "Look at the log of the service."
        checks.append(Check("embedded services", partial(check_embedded, config), _SERVICE_DEADLINE_S, advice))
    if with_engine:
        deadline_s = _ENGINE_DEADLINE_S + 30  # the child process has its own
        checks.append(Check("two tokens", partial(check_generation, config), deadline_s))
    return checks


def _as_findings(check: Callable[[], Iterable[Problem]], name: str, earlier: Iterable[Problem]) -> Iterator[Finding]:
    problems = [*(earlier if name == "configuration" else ()), *without_consequences(check(), earlier)]
    found = [Finding(_STATUSES[p.severity], p.text) for p in problems if p.severity in _STATUSES]
    yield from found or [ok(_MEANINGS[name])]


def check_output(config: Config) -> Iterator[Finding]:
    """Room for the checkpoints of a run: weights, float32 main parameters and both moments of Adam."""
    training, (facts, _) = config.megatron_training, find_model_facts(config)
    size = 0
    if facts is not None:
        size = count_parameters(facts) * (4 * 3 + (2 if training.bf16 else 4))
    number = max(1, -(-training.train_iters // training.save_interval))
    kept = min(number, training.max_checkpoints or number)
    folder, purpose = Path(training.output_dir), "checkpoints and trajectories"
    one = list(check_disk(folder, purpose, 2 * size, "a checkpoint and the one that replaces it"))
    many = list(check_disk(folder, purpose, kept * size, f"{kept} checkpoints"))
    if one[0].status is Status.OK and many[0].status is not Status.OK:
        yield warn(f"{many[0].text} megatron_training.max_checkpoints keeps fewer.")
    else:
        yield from one


def check_embedded(config: Config) -> Iterator[Finding]:
    """Start the services that the tool YAML calls embedded, and have each tool ask its service."""
    with embedded_services(config) as overrides:
        if not overrides:
            yield ok("none is configured")
            return
        toolbox = load_toolbox(Path(config.rl_config.tool_config_path or ""), overrides=overrides)

        async def ask() -> None:
            try:
                await toolbox.check()
            finally:
                await toolbox.close()

        asyncio.run(ask())
        yield ok(f"{', '.join(sorted(overrides))}: started, answered and stopped")


def check_generation(config: Config) -> Iterator[Finding]:
    """Two tokens of the real engine in a process of its own, and their log-probs by the actor."""
    if not Path(config.actor_config.load, "config.json").is_file():
        yield fail(f"actor_config.load: no model in '{config.actor_config.load}', so there is nothing to try.")
        return
    with ExitStack() as stack:
        # Ctrl-C ends the main thread while this one waits; what is left then ends with the interpreter.
        atexit.register(stack.close)
        stack.callback(atexit.unregister, stack.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="turnwise-doctor-"))
        pickled = Path(folder) / "config"
        pickled.write_bytes(pickle.dumps(config))
        environment = os.environ | engine_variables(config, Path(folder))
        process = subprocess.Popen(
            [sys.executable, "-m", "rl.doctor.generation", str(pickled)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        stack.callback(_end_group, process)
        try:
            output, _ = process.communicate(timeout=_ENGINE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            yield fail(
                f"the engine has not answered within {_ENGINE_DEADLINE_S:.0f} s. Is another program using the device?"
            )
            return
    yield from _judge(config, process.returncode, output)


def _judge(config: Config, code: int, output: str) -> Iterator[Finding]:
    lines = output.splitlines()
    answer = next((line.removeprefix(MARK) for line in lines if line.startswith(MARK)), None)
    if answer is None:
        killed = "it was killed, probably for lack of memory" if code == -signal.SIGKILL else f"exit code {code}"
        reason = first_error(deque(reversed(lines))) or killed
        yield fail(f"the engine or the actor failed: {reason}. Lower generate_config's memory, or check the model.")
        return
    found = Generated(**json.loads(answer))
    text = f"{found.text!r} after {found.start_s:.0f} s of loading, {found.generate_s:.2f} s"
    if found.difference is None:
        yield ok(f"{text}; log-probs are not compared, since the actor needs several devices")
        return
    limit = 1e-3 if config.generate_config.dtype == "float32" and not config.megatron_training.bf16 else 0.2
    text += f"; log-probs of engine and actor differ by at most {found.difference:.1e}"
    if found.difference <= limit:
        yield ok(text)
    else:
        yield fail(
            f"{text}, expected at most {limit:g}: they do not have the same model. Check actor_config.load, "
            "generate_config.dtype and megatron_training.bf16."
        )


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill the child and what it started; vLLM's processes may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
