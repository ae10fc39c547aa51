"""`rl view RUN`: prints one trajectory in color, turn by turn, or shows the whole run as a page."""

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
from rl.observability.page.command import add_page_options, show_page
from rl.observability.run_directory import RunDirectory
from rl.observability.terminal import visible
from rl.observability.token_records import last_recorded_step, read_tokens
from rl.observability.token_view import CHOICES, print_tokens
from rl.observability.trajectories import read_records

PROMPT_STYLE, MODEL_STYLE, CALL_STYLE, TOOL_STYLE = "cyan", "green", "blue", "yellow"
REWARD_STYLE, ERROR_STYLE = "bold magenta", "bold red"
THOUGHT_STYLE = "dim italic"


def main(argv: list[str]) -> int:
    """Print a trajectory of a run in color, or show the run as a page; return the exit code.

    Raises:
        DataError: The run, step or trajectory does not exist.
    """
    arguments = _parser().parse_args(argv)
    run = RunDirectory.open(arguments.run)
    if arguments.html or arguments.serve:
        return show_page(run, arguments)
    if not any(run.trajectories.glob("*.jsonl")):
        raise DataError(f"{run.path}: no trajectories. A run has some after its first step; a cold start has none.")
    has_steps = any(run.trajectories.glob("step_*.jsonl"))  # `rl evaluate` writes none
    kind = "step" if has_steps and not arguments.eval else "eval"
    if arguments.list:
        _print_list(run, console())
        return 0
    step = arguments.step
    if arguments.tokens and arguments.eval:
        raise DataError("--tokens: the tokens of evaluations are not recorded, got --eval too. Remove one of them.")
    if arguments.tokens and step is None:
        step = last_recorded_step(run)
    path = trajectory_file(run, "step" if arguments.tokens else kind, step)
    records = read_records(path)
    if not records:
        raise DataError(f"{path}: no trajectories. `rl view RUN --list` shows the steps with trajectories.")
    if arguments.best or arguments.worst:
        record = by_score(records, highest=arguments.best)
    elif arguments.id:
        record = _by_id(records, arguments.id, path)
    else:
        record = _by_index(records, arguments.index, path)
    number = int(path.stem.split("_")[1])
    if arguments.tokens:
        rows = [row for row in read_tokens(run, number) if row.trajectory_id == record["id"]]
        console().print(Rule(f"step {number}  [bold]{escape(visible(record['id']))}[/]"))
        print_tokens(rows, console(), arguments.tokens)
        return 0
    print_record(record, console(), title=f"step {number}" if kind == "step" else f"evaluation after step {number}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rl view", description="Print a trajectory of a run in color, or show the run as a page."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--step", type=int, help="number of the step, or number of steps before an evaluation; default: the last"
    )
    parser.add_argument("--eval", action="store_true", help="show evaluations instead of training steps")
    parser.add_argument("--list", action="store_true", help="list the steps and their scores")
    tokens = "show its tokens, if the step is recorded, colored by %(choices)s; default: author, in the last such step"
    parser.add_argument("--tokens", nargs="?", const=CHOICES[0], choices=CHOICES, metavar="BY", help=tokens)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, help="index of the trajectory in the file, from 0")
    which.add_argument("--id", help="id of the trajectory, such as train-17/3")
    which.add_argument("--best", action="store_true", help="the trajectory with the highest score")
    which.add_argument("--worst", action="store_true", help="the trajectory with the lowest score")
    add_page_options(parser)
    return parser


def trajectory_file(run: RunDirectory, kind: str, step: int | None) -> Path:
    """Find the trajectory file of a step.

    Args:
        run: The run.
        kind: `step` or `eval`.
        step: Number of the step; None for the last.

    Raises:
        DataError: There is no such file.
    """
    files = sorted(run.trajectories.glob(f"{kind}_*.jsonl"))
    if not files:
        raise DataError(f"{run.path}: no trajectories of kind '{kind}' yet. Wait for the first, or choose another run.")
    if step is None:
        return files[-1]
    path = run.trajectories / f"{kind}_{step:06d}.jsonl"
    if path not in files:
        numbers = ", ".join(str(int(f.stem.split("_")[1])) for f in files)
        raise DataError(f"--step: no trajectories of kind '{kind}', got {step}. Available: {numbers}.")
    return path


def by_score(records: Sequence[dict[str, Any]], *, highest: bool) -> dict[str, Any]:
    """The first record with the highest or lowest score; no score counts as the lowest."""

    def score(record: dict[str, Any]) -> float:
        return float("-inf") if record["score"] is None else float(record["score"])

    return max(records, key=score) if highest else min(records, key=score)


def print_record(record: dict[str, Any], target: Console, *, title: str = "") -> None:
    """Print one trajectory.

    Args:
        record: From `rl.observability.trajectories.to_record`.
        target: Output console.
        title: Shown before the trajectory's id in the first line.
    """
    name, source = (escape(visible(record[key])) for key in ("id", "data_source"))
    target.print(Rule(f"{escape(title)}  [bold]{name}[/]  {source}"))
    for message in record["messages"]:
        print_message(target, message["role"], message["content"])
    starts, sequence = record.get("starts", []), None
    for number, turn in enumerate(record["turns"], start=1):
        if len(starts) > 1 and turn["sequence"] != sequence:
            sequence = turn["sequence"]
            target.print(Rule(start_line(starts, sequence), align="left", style=PROMPT_STYLE))
        for message in turn.get("asked", []):
            print_message(target, message["role"], message["content"])
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
        target.print(Text(visible(f"{name}: {text}"), style=REWARD_STYLE), soft_wrap=True)
    if record.get("failure"):
        target.print(Text(visible(f"failed: {record['failure']}"), style=ERROR_STYLE))
    if record["reward_error"]:
        target.print(Text(visible(f"reward failed: {record['reward_error']}"), style=ERROR_STYLE))
    target.print(
        Text(f"expected {record['ground_truth']!r}, stopped: {record['stop_reason']}, {record['wall_s']:.2f} s")
    )


def start_line(starts: Sequence[dict[str, Any]], number: int) -> str:
    """How a token sequence began: `sequence 1 of 3: behind 120 tokens of sequence 0, second continuation`.

    Args:
        starts: The trajectory's, from `rl.observability.trajectories.to_record`.
        number: Number of the sequence, from 0.
    """
    start = starts[number]
    source = start["branches_from"]
    behind = "" if source is None else f"behind {start['num_copied']} tokens of sequence {source}, "
    return f"sequence {number} of {len(starts)}: {behind}{start['why'].replace('_', ' ')}"


def print_message(target: Console, head: str, text: str | None) -> None:
    """Print a message of the prompt."""
    _block(target, head, text, PROMPT_STYLE)


def print_generation(target: Console, turn: dict[str, Any], number: int) -> None:
    """Print the generated text of a turn, with thoughts dimmed.

    Args:
        target: Output console.
        turn: From `rl.observability.trajectories.turn_record`.
        number: Number of the turn, from 1.
    """
    head = f"model, turn {number}, {turn['num_tokens']} tokens, {turn['generate_s']:.2f} s"
    _block(target, head, turn["text"], MODEL_STYLE, turn.get("thoughts", ()))


def print_call(target: Console, call: dict[str, Any]) -> None:
    """Print a call with its arguments (only the code if `code` is the only one), or the raw text if malformed."""
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
    target.print(Text(f"[{visible(head)}]", style=f"bold {style}"))
    shown = Text(visible(text or "(empty)"), style=style)
    for start, end in thoughts:
        shown.stylize(THOUGHT_STYLE, start, end)
    target.print(shown, soft_wrap=True)


def _by_index(records: list[dict[str, Any]], index: int, path: Path) -> dict[str, Any]:
    if not 0 <= index < len(records):
        raise DataError(f"--index: must be from 0 to {len(records) - 1} in {path.name}, got {index}.")
    return records[index]


def _by_id(records: list[dict[str, Any]], wanted: str, path: Path) -> dict[str, Any]:
    for record in records:
        if record["id"] == wanted:
            return record
    raise DataError(f"--id: no trajectory '{wanted}' in {path.name}. The first one is '{records[0]['id']}'.")


def _print_list(run: RunDirectory, target: Console) -> None:
    for path in sorted(run.trajectories.glob("*.jsonl"), key=lambda p: (p.stem.split("_")[1], p.stem)):
        records = read_records(path)
        scores = [r["score"] for r in records if r["score"] is not None]
        mean = f"{sum(scores) / len(scores):.3f}" if scores else "none"
        without = f"  {len(records) - len(scores)} without a score" if len(scores) < len(records) else ""
        target.print(f"{path.stem:<14} {len(records):>5} trajectories  mean score {mean}{without}", markup=False)
