"""Warnings of a run: when they are told, what they say, and when they end the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rl.batches import GroupHeader
from rl.config.early_warning import EarlyWarning
from rl.observability.run_directory import RunDirectory
from rl.run.early_warnings import EarlyWarnings
from tests.unit.observability.test_detectors import group, header

GROUPS = [group(header(unread=0), header(unread=3))]
RUN = {"timing_s/step": 1.0}


def make(folder: Path, **limits: Any) -> EarlyWarnings:
    off = dict.fromkeys(("uniform_groups", "unread_calls", "length_reward", "tool_errors"))
    return EarlyWarnings(RunDirectory(folder), EarlyWarning(**{**off, **limits}))


def observe(warnings: EarlyWarnings, entropies: list[float], groups: list[GroupHeader] = GROUPS) -> list[float]:
    """`warnings/entropy_low` of successive steps."""
    found = [warnings.observe(i, {**RUN, "actor/entropy": e}, groups)[0] for i, e in enumerate(entropies, start=1)]
    return [each["warnings/entropy_low"] for each in found]


def test_a_warning_is_raised_after_its_patience_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    warnings = make(tmp_path)
    assert observe(warnings, [0.001, 0.001, 0.1, 0.001, 0.004, 0.003, 0.001, 0.1, 0.001]) == [0, 0, 0, 0, 0, 1, 1, 0, 0]
    (line,) = [json.loads(line) for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert (line["step"], line["name"], line["value"], line["threshold"]) == (6, "entropy_low", 0.003, 0.005)
    assert (line["action"], line["trajectories"]) == ("warn", [])
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told.startswith(
        "early warning after step 6, entropy_low: entropy of the policy, nats per token, is 0.003, at"
    )
    assert warnings.summary() == ["early warning entropy_low: raised after step 6."]


def test_a_warning_names_the_trajectories_that_show_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    groups = [group(header(unread=0), header(unread=3))]
    first, second = groups[0].trajectories
    first.id, second.id = "train-1/0", "train-1/1"
    warnings = make(tmp_path, unread_calls=0.3, patience=1)
    warnings.observe(1, RUN, groups)
    assert f"--step 1 --id {second.id}" in caplog.text
    assert json.loads((tmp_path / "warnings.jsonl").read_text())["trajectories"] == [second.id, first.id]


def test_a_stop_ends_the_run_after_its_patience(tmp_path: Path):
    warnings = make(tmp_path, patience=2, stop={"entropy_low": 0.002})
    reasons = [warnings.observe(i, {**RUN, "actor/entropy": e}, GROUPS)[1] for i, e in enumerate([0.004, 0.001, 0.001])]
    assert reasons[:2] == [None, None]
    assert reasons[2] is not None and "early_warning.stop.entropy_low" in reasons[2]
    actions = [json.loads(line)["action"] for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert actions == ["warn", "stop"]


def test_null_turns_a_figure_off(tmp_path: Path):
    raised, _ = make(tmp_path, entropy_low=None, patience=1).observe(1, {**RUN, "actor/entropy": 0.0}, GROUPS)
    assert "warnings/entropy_low" not in raised
    assert not (tmp_path / "warnings.jsonl").exists()


def test_a_resumed_run_knows_the_steps_before_and_what_was_told(tmp_path: Path):
    told = {"warnings/entropy_low": 1.0}
    history = [
        {"step": 1.0, **RUN, "actor/entropy": 0.001},
        {"step": 2.0, **RUN, "actor/entropy": 0.001, **told},
        {"step": 2.0, "val-core/all": 0.0},
        {"step": 3.0, **RUN, "actor/entropy": 0.001, **told},
    ]
    warnings = make(tmp_path)
    warnings.recall(history)
    assert observe(warnings, [0.001]) == [1]
    assert not (tmp_path / "warnings.jsonl").exists()
    assert warnings.summary() == ["early warning entropy_low: raised after step 2."]


def test_a_cold_start_has_no_warnings(tmp_path: Path):
    assert make(tmp_path, patience=1).observe(1, {**RUN, "actor/entropy": 0.0}, []) == ({}, None)


def evaluation(low: float, high: float, num: int = 9) -> dict[str, float]:
    key = "val-core/all/acc"
    return {f"{key}/mean@1": 0.5, f"{key}/ci95_low": low, f"{key}/ci95_high": high, "val-core/all/num_questions": num}


def falls(warnings: EarlyWarnings, evaluations: dict[int, dict[str, float]], steps: range) -> list[float]:
    """`warnings/evaluation_fall` of steps, some with an evaluation."""
    found = []
    for step in steps:
        if step in evaluations:
            warnings.record_evaluation(step, evaluations[step])
        found.append(warnings.observe(step, RUN, GROUPS)[0]["warnings/evaluation_fall"])
    return found


def test_a_fall_of_the_evaluations_is_told_across_a_resume(tmp_path: Path):
    warnings = make(tmp_path, patience=2)
    warnings.recall([{"step": 0, **evaluation(0.6, 0.8)}, {"step": 1, **RUN}])
    low = evaluation(0.3, 0.5)
    assert falls(warnings, {2: low, 4: low, 6: evaluation(0.5, 0.7)}, range(2, 8)) == [0, 0, 1, 1, 0, 0]
    (line,) = [json.loads(line) for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert line["step"] == 4 and "in 2 evaluations in a row." in line["text"]


def test_a_single_evaluation_is_counted_once_however_many_steps_follow(tmp_path: Path):
    evaluations = {1: evaluation(0.6, 0.8), 2: evaluation(0.3, 0.5)}
    assert falls(make(tmp_path), evaluations, range(1, 9)) == [0] * 8


def test_a_resume_keeps_the_count_of_evaluations(tmp_path: Path):
    warnings = make(tmp_path, patience=2)
    warnings.recall(
        [
            {"step": 0, **evaluation(0.6, 0.8)},
            {"step": 2, **evaluation(0.3, 0.5)},
            {"step": 2, **RUN},
            {"step": 3, **RUN},
        ]
    )
    assert falls(warnings, {5: evaluation(0.3, 0.5)}, range(4, 7)) == [0, 1, 1]


def test_evaluations_of_another_number_of_questions_are_forgotten(tmp_path: Path):
    harder, worse = evaluation(0.3, 0.5, 20), evaluation(0.0, 0.2, 20)
    evaluations = {1: evaluation(0.6, 0.8), 2: harder, 3: harder, 4: worse}
    assert falls(make(tmp_path, patience=1), evaluations, range(1, 6)) == [0, 0, 0, 1, 1]
