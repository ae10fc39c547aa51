"""Overrides of shell scripts: quotes, variables, arithmetic, arrays."""

from __future__ import annotations

import pytest

from rl.migrate.shell import read_script


def overrides(script: str) -> list[str]:
    return read_script(script).overrides


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("main data.n=1 \\\n  data.m=2", ["data.n=1", "data.m=2"]),
        ("main +data.n=1 ++data.m=2", ["+data.n=1", "++data.m=2"]),
        ("main data.n=1 \\\n  # data.old=3 \\\n  data.m=2", ["data.n=1", "data.m=2"]),
        ("X=3\nmain data.n=$X data.m=${X}k", ["data.n=3", "data.m=3k"]),
        ("export X='a b'\nmain data.n=\"$X\"", ["data.n=a b"]),
        ('main data.n=${X:-7} data.m=${Y-"8"}', ["data.n=7", "data.m=8"]),
        ("A=2\nB=$((1024 * A))\nmain data.n=$B", ["data.n=2048"]),
        ("A=2\nB=3\nmain data.n=$(((A + B) * (A + 1)))", ["data.n=15"]),
        ("A=2\nmain data.n=$(($A + 1))_$((${A} * 4 / 3))", ["data.n=3_2"]),
        ("main data.files=\"['$HOME/a','$HOME/b']\"", ["data.files=['~/a','~/b']"]),
        ('main trainer.logger=\'["console","wandb"]\'', ['trainer.logger=["console","wandb"]']),
        ("main trainer.logger=['console','wandb']", ["trainer.logger=[console,wandb]"]),
        ('C=(\n  data.n=1\n  data.m=2  # two\n)\nC+=(data.k=3)\nmain "${C[@]}"', ["data.n=1", "data.m=2", "data.k=3"]),
        ('X=5\nC="\n  data.n=$X \\\n  data.m=2\n"\nmain $C', ["data.n=5", "data.m=2"]),
        ("D=$(pwd)\nmain data.n=$D/x", ["data.n=./x"]),
        ("data.n=1\ndata.m=2", ["data.n=1", "data.m=2"]),
    ],
)
def test_overrides_of_a_script(script: str, expected: list[str]) -> None:
    assert overrides(script) == expected


def test_unknown_variables_stay_in_the_value_and_are_named() -> None:
    script = read_script("main data.n=${FOLDER}/x data.m=$(nproc) data.k=1")
    assert script.overrides == ["data.n=$FOLDER/x", "data.m=$(nproc)", "data.k=1"]
    assert script.notes == {
        "data.n": "${FOLDER} is not set in the script. Write the value.",
        "data.m": "$(nproc) is not set in the script. Write the value.",
    }


def test_a_variable_set_under_a_condition_is_named_if_it_is_used() -> None:
    text = 'if [ -n "$1" ]; then\n  N=2\n  UNUSED=3\nfi\nmain data.n=$N'
    script = read_script(text)
    assert script.overrides == ["data.n=2"]
    assert list(script.notes) == ["$N"]


def test_options_of_the_command_name_its_configuration() -> None:
    script = read_script("P=configs\nmain --config-path=\"$P\" --config-name='grpo' data.n=1")
    assert script.options == {"config-path": "configs", "config-name": "grpo"}


def test_arithmetic_runs_no_code() -> None:
    assert overrides("main data.n=$((__import__('os').getpid()))") == ["data.n=$((__import__('os').getpid()))"]
