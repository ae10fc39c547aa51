"""`rl view RUN`: one trajectory in colours, turn by turn: what was asked, generated, answered and rewarded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.text import Text

from rl.errors import DataError
from rl.observability.log import console
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import read_records

PROMPT_STYLE, MODEL_STYLE, CALL_STYLE, TOOL_STYLE = "cyan", "green", "blue", "yellow"
REWARD_STYLE, ERROR_STYLE = "bold magenta", "bold red"
THOUGHT_STYLE = "dim italic"


def main(argv: list[str]) -> int:
    """Print a trajectory of a run in colours.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit code.

    Raises:
        DataError: There is no such run, step or trajectory.
    """
    parser = argparse.ArgumentParser(prog="rl view", description="Print a trajectory of a run in colours.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--step", type=int, help="number of the step, or of steps before an evaluation; default: the last"
    )
    parser.add_argument("--eval", action="store_true", help="look at evaluations instead of training steps")
    parser.add_argument("--list", action="store_true", help="list the steps and their scores")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, help="the trajectory's place in the file, from 0")
    which.add_argument("--id", help="the trajectory's id, such as train-17/3")
    which.add_argument("--best", action="store_true", help="the trajectory with the highest score")
    which.add_argument("--worst", action="store_true", help="the trajectory with the lowest score")
    arguments = parser.parse_args(argv)
    run = RunDirectory.open(arguments.run)
    if not any(run.trajectories.glob("*.jsonl")):
        raise DataError(f"{run.path}: no trajectories. A cold start makes none; a run has some after its first step.")
    has_steps = any(run.trajectories.glob("step_*.jsonl"))  # `rl evaluate` makes none
    kind = "step" if has_steps and not arguments.eval else "eval"
    if arguments.list:
        _print_list(run, console())
        return 0
    path = trajectory_file(run, kind, arguments.step)
    records = read_records(path)
    if not records:
        raise DataError(f"{path}: has no trajectories. `rl view RUN --list` shows which steps have some.")
    if arguments.best or arguments.worst:
        record = by_score(records, highest=arguments.best)
    elif arguments.id:
        record = _by_id(records, arguments.id, path)
    else:
        record = _by_index(records, arguments.index, path)
    number = int(path.stem.removeprefix(f"{kind}_"))
    print_record(record, console(), title=f"step {number}" if kind == "step" else f"evaluation after step {number}")
    return 0


def trajectory_file(run: RunDirectory, kind: str, step: int | None) -> Path:
    """The file of a step, or the last one.

    Args:
        run: The run.
        kind: `step` or `eval`.
        step: Its number; None for the last.

    Raises:
        DataError: There is none.
    """
    files = sorted(run.trajectories.glob(f"{kind}_*.jsonl"))
    if not files:
        raise DataError(f"{run.path}: no trajectories of kind '{kind}' yet. Wait for the first, or choose another run.")
    if step is None:
        return files[-1]
    path = run.trajectories / f"{kind}_{step:06d}.jsonl"
    if path not in files:
        numbers = ", ".join(str(int(f.stem.split("_")[1])) for f in files)
        raise DataError(f"--step: no trajectories of kind '{kind}' with number {step}. There are {numbers}.")
    return path


def by_score(records: Sequence[dict[str, Any]], *, highest: bool) -> dict[str, Any]:
    """The record with the highest or lowest score, the first of several; one without a score is the very lowest."""

    def score(record: dict[str, Any]) -> float:
        return float("-inf") if record["score"] is None else float(record["score"])

    return max(records, key=score) if highest else min(records, key=score)


def print_record(record: dict[str, Any], target: Console, *, title: str = "") -> None:
    """Print one trajectory.

    Args:
        record: As `rl.observability.trajectories.to_record` makes it.
        target: Where to.
        title: Shown in the head line in front of the trajectory's id.
    """
    target.print(Rule(f"{escape(title)}  [bold]{escape(record['id'])}[/]  {escape(record['data_source'])}"))
    for message in record["messages"]:
        print_message(target, message["role"], message["content"])
    for number, turn in enumerate(record["turns"], start=1):
        print_generation(target, turn, number)
        for index, call in enumerate(turn["calls"]):
            print_call(target, call)
            if index < len(turn["results"]):
                print_result(target, turn["results"][index])
        for message in turn.get("messages", []):
            print_message(target, message["role"], message["content"])
    rewards = "  ".join(f"{name} {value:.3f}" for name, value in record["rewards"].items())
    score = "none" if record["score"] is None else f"{record['score']:.3f}"
    target.print(Text(f"score {score}  {rewards}", style=REWARD_STYLE))
    for name, text in record.get("reward_texts", {}).items():
        target.print(Text(f"{name}: {text}", style=REWARD_STYLE), soft_wrap=True)
    if record.get("failure"):
        target.print(Text(f"failed: {record['failure']}", style=ERROR_STYLE))
    if record["reward_error"]:
        target.print(Text(f"reward failed: {record['reward_error']}", style=ERROR_STYLE))
    target.print(
        Text(f"expected {record['ground_truth']!r}, stopped: {record['stop_reason']}, {record['wall_s']:.2f} s")
    )


def print_message(target: Console, head: str, text: str | None) -> None:
    """Print what the model reads: a message of the prompt."""
    _block(target, head, text, PROMPT_STYLE)


def print_generation(target: Console, turn: dict[str, Any], number: int) -> None:
    """Print what was generated in a turn, the calls as they were written and the thoughts dimmed.

    Args:
        target: Where to.
        turn: As `rl.observability.trajectories.turn_record` makes it.
        number: Of the turn, from 1.
    """
    head = f"model, turn {number}, {turn['num_tokens']} tokens, {turn['generate_s']:.2f} s"
    _block(target, head, turn["text"], MODEL_STYLE, turn.get("thoughts", ()))


def print_call(target: Console, call: dict[str, Any]) -> None:
    """Print a call and its arguments, lone code as it is; a call that could not be read, as it was written."""
    if call["error"] is not None:
        _block(target, f"call of {call['name'] or 'a tool'}, malformed", call["raw"], ERROR_STYLE)
        return
    values = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in call["arguments"].items()}
    shown = values["code"] if list(values) == ["code"] else "\n".join(f"{k}: {v}" for k, v in values.items())
    _block(target, f"call of {call['name']}", shown, CALL_STYLE)


def print_result(target: Console, result: dict[str, Any]) -> None:
    """Print the result of a call with its status and times."""
    notes = [f"queued {result['queue_s']:.3f} s", f"ran {result['run_s']:.3f} s"]
    notes += [f"{n} failed attempts"] if (n := result.get("num_failed_attempts", 0)) else []
    notes += [f"reward {result['reward']:g}"] if result["reward"] is not None else []
    notes += ["truncated"] if result["is_truncated"] else []
    style = TOOL_STYLE if result["status"] == "ok" else ERROR_STYLE
    _block(target, f"{result['name'] or 'tool'}: {result['status']}, {', '.join(notes)}", result["text"], style)


def _block(target: Console, head: str, text: str | None, style: str, thoughts: Sequence[tuple[int, int]] = ()) -> None:
    target.print(Text(f"[{head}]", style=f"bold {style}"))
    shown = Text(text or "(empty)", style=style)
    for start, end in thoughts:
        shown.stylize(THOUGHT_STYLE, start, end)
    target.print(shown, soft_wrap=True)


def _by_index(records: list[dict[str, Any]], index: int, path: Path) -> dict[str, Any]:
    if not 0 <= index < len(records):
        raise DataError(f"--index: must be 0 to {len(records) - 1} in {path.name}, got {index}.")
    return records[index]


def _by_id(records: list[dict[str, Any]], wanted: str, path: Path) -> dict[str, Any]:
    for record in records:
        if record["id"] == wanted:
            return record
    raise DataError(f"--id: no trajectory '{wanted}' in {path.name}. The first there is '{records[0]['id']}'.")


def _print_list(run: RunDirectory, target: Console) -> None:
    for path in sorted(run.trajectories.glob("*.jsonl"), key=lambda p: (p.stem.split("_")[1], p.stem)):
        records = read_records(path)
        scores = [r["score"] for r in records if r["score"] is not None]
        mean = f"{sum(scores) / len(scores):.3f}" if scores else "none"
        without = f"  {len(records) - len(scores)} without a score" if len(scores) < len(records) else ""
        target.print(f"{path.stem:<14} {len(records):>5} trajectories  mean score {mean}{without}", markup=False)
