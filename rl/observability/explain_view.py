"""`rl explain RUN`: prints what happened in one step, prompt by prompt."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rl.observability.explain import (
    Direction,
    MovedText,
    MovedToken,
    PromptStory,
    Sampled,
    StepStory,
    Update,
    explain_step,
)
from rl.observability.log import console
from rl.observability.run_directory import RunDirectory
from rl.observability.terminal import print_table, visible
from rl.observability.token_records import recorded_steps
from rl.observability.viewer import trajectory_file

_UP, _DOWN, _LEFT_OUT = "dark_orange", "dodger_blue1", "dim"
_LONGEST = 100
"""Characters of a prompt's text."""


def main(argv: list[str]) -> int:
    """Print what happened in a step of a run; return the exit code.

    Raises:
        DataError: The run, step or prompt does not exist, or a file is damaged.
    """
    parser = argparse.ArgumentParser(
        prog="rl explain", description="Print what happened in a step, prompt by prompt, from a run's files."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--step", type=int, help="number of the step; default: the last one with recorded tokens")
    parser.add_argument("--prompt", metavar="ID", help="only this prompt, such as train-17")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    run = RunDirectory.open(arguments.run)
    step = arguments.step
    if step is None:
        step = max(recorded_steps(run), default=None)
    path = trajectory_file(run, "step", step)
    story = explain_step(run, int(path.stem.removeprefix("step_")), arguments.prompt)
    if arguments.json:
        sys.stdout.write(json.dumps(_finite(asdict(story)), ensure_ascii=False) + "\n")
    else:
        print_story(story, console())
    return 0


def print_story(story: StepStory, target: Console) -> None:
    """Print a step: the whole, each prompt, and the tokens that moved most."""
    target.print(Rule(f"step {story.step}"))
    for line in _overview(story):
        target.print(Text(line), soft_wrap=True)
    for prompt in story.prompts:
        _print_prompt(prompt, target, is_alone=len(story.prompts) == 1)
    if not story.are_tokens_recorded:
        known = f"Recorded steps: {', '.join(map(str, story.recorded_steps))}" if story.recorded_steps else "None is"
        target.print(
            Text(
                f"The tokens of this step are not recorded, so ratios, clipping and moves are not known. {known}; "
                "megatron_training.record_tokens_every sets how often."
            ),
            soft_wrap=True,
        )
        return
    for title, style, tokens, texts in (
        ("up", _UP, story.tokens_up, story.texts_up),
        ("down", _DOWN, story.tokens_down, story.texts_down),
    ):
        _print_moved(title, style, tokens, texts, target)


def _overview(story: StepStory) -> list[str]:
    trajectories = [t for prompt in story.prompts for t in prompt.trajectories]
    kept = [p for p in story.prompts if any(t.exclusion is None for t in p.trajectories)]
    num_out = sum(story.exclusions.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in story.exclusions.items())
    lines = [
        f"prompts       {len(kept)} of {len(story.prompts)} trained on",
        f"trajectories  {len(trajectories) - num_out} of {len(trajectories)} trained on"
        + (f"; left out: {reasons}" if reasons else ""),
    ]
    if story.metrics:
        figures = ", ".join(f"{name.removeprefix('actor/')} {_number(value)}" for name, value in story.metrics.items())
        lines.append(f"update        {figures}")
    for name, direction in (("advantage > 0", story.reinforced), ("advantage < 0", story.discouraged)):
        if direction is not None:
            lines.append(f"{name} {_direction(direction)}")
    return lines


def _direction(direction: Direction) -> str:
    return (
        f"{direction.num_tokens} tokens moved {direction.mean_move:+.3g} nats on average; "
        f"{direction.num_against} of {direction.num_trajectories} sequences moved against their advantage"
    )


def _print_prompt(prompt: PromptStory, target: Console, *, is_alone: bool) -> None:
    """Print a prompt's trajectories. One that is left out whole is short, unless it is the only one."""
    text = " ".join(visible(prompt.text).split())
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    target.print(Text(f"\n{visible(prompt.id)}  {prompt.verdict}", style="bold"))
    target.print(Text(f"{shown}  (expected {visible(prompt.ground_truth)!r})"), soft_wrap=True)
    is_left_out = all(trajectory.exclusion is not None for trajectory in prompt.trajectories)
    if is_left_out and not is_alone:
        for failure in dict.fromkeys(t.failure for t in prompt.trajectories if t.failure):
            target.print(Text(visible(failure)), soft_wrap=True)
        return
    names = [name for name in dict.fromkeys(n for t in prompt.trajectories for n in t.rewards) if "/" not in name]
    columns = {name: column for name, column in _columns(names).items() if _tells(column, prompt.trajectories)}
    table = Table("sample", *map(escape, columns), box=SIMPLE_HEAD, pad_edge=False)
    for trajectory in prompt.trajectories:
        cells = [Text(_number(column(trajectory))) for column in columns.values()]
        style = "" if trajectory.exclusion is None else _LEFT_OUT
        table.add_row(trajectory.id.rpartition("/")[2], *cells, style=style)
    print_table(table, target)


_Column = Callable[[Sampled], Any]


def _columns(reward_names: Sequence[str]) -> dict[str, _Column]:
    """Columns of a prompt's table."""
    rewards: dict[str, _Column] = {
        visible(name): lambda t, name=name: t.rewards.get(name)  # type: ignore[misc]
        for name in reward_names
    }

    def of_update(name: str) -> _Column:
        return lambda t: None if t.update is None else getattr(t.update, name)

    return {
        "score": lambda t: t.score,
        **(rewards if len(rewards) > 1 else {}),
        "KL penalty": lambda t: t.kl_penalty or None,
        "reward": _shaped_reward,
        "advantage": lambda t: t.advantage,
        "tokens": lambda t: t.num_sampled,
        "turns": lambda t: t.num_turns,
        "stop": lambda t: t.stop_reason,
        "ratio": lambda t: _ratios(t.update),
        "clipped": lambda t: None if t.update is None else t.update.clip_fraction or None,
        "weight": lambda t: _weights(t.update),
        "KL to reference": of_update("reference_kl"),
        "max |engine - actor|": of_update("largest_difference"),
        "moved": of_update("mean_move"),
        "left out": _why_left_out,
    }


def _tells(column: _Column, trajectories: Sequence[Sampled]) -> bool:
    """Whether a column holds anything."""
    return any(column(trajectory) is not None for trajectory in trajectories)


def _why_left_out(trajectory: Sampled) -> str | None:
    if trajectory.failure and trajectory.score is None:
        failure = visible(trajectory.failure)
        return failure if len(failure) <= _LONGEST else f"{failure[:_LONGEST]}…"
    return None if trajectory.exclusion is None else str(trajectory.exclusion)


def _shaped_reward(trajectory: Sampled) -> float | None:
    """The reward, if it differs from the score beyond the rounding of float32."""
    score, reward = trajectory.score, trajectory.reward
    is_same = score is None or reward is None or math.isclose(score, reward, rel_tol=1e-6, abs_tol=1e-7)
    return None if is_same else reward


def _ratios(update: Update | None) -> str | None:
    if update is None or update.ratio_min == update.ratio_max == 1.0:
        return None
    return f"{update.ratio_min:.3g} to {update.ratio_max:.3g}"


def _weights(update: Update | None) -> str | None:
    if update is None or update.weight_min == update.weight_mean == 1.0:
        return None
    return "rejected" if update.weight_mean == 0.0 else f"{update.weight_mean:.3g}, least {update.weight_min:.3g}"


def _print_moved(
    title: str, style: str, tokens: Sequence[MovedToken], texts: Sequence[MovedText], target: Console
) -> None:
    if not tokens:
        return
    target.print(Text(f"\nTokens that moved {title} most", style="bold"))
    for token in tokens:
        line = Text(f"{token.move:+8.3f}  advantage {token.advantage:+.2f}  log-prob {token.old_logprob:.3f}  ")
        line.append(f"{visible(token.trajectory_id)} token {token.position}: …", style="dim")
        line.append(_one_line(token.before))
        line.append(f"»{_one_line(token.piece)}«", style=f"bold {style} reverse")
        line.append(_one_line(token.after))
        line.append(f"  in {token.num_alike} trajectories" if token.num_alike > 1 else "", style="dim")
        target.print(line, soft_wrap=True)
    if texts:
        found = ", ".join(f"'{_one_line(t.piece)}' {t.num_tokens}x {t.mean_move:+.3f}" for t in texts)
        target.print(Text(f"texts that moved {title} most in sum: {found}"), soft_wrap=True)


def _one_line(text: str) -> str:
    return visible(text).replace("\n", "↵").replace("\t", "→")


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """Replace NaN and Inf, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
