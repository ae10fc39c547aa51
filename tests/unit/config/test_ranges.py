"""Every number of the schema has bounds that a sane run cannot leave, and no other value passes for a number."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.__main__ import main
from rl.config.check import check_section
from rl.config.keys import default_mapping, field_types, key_paths
from rl.config.load import compose_config
from rl.config.model_facts import read_model_facts
from rl.config.schema import Config, DatasetConfig
from rl.errors import ModelError

MAY_BE_NEGATIVE = {
    "generate_config.sampling_config.top_k",
    "generate_config.eval_sampling_config.top_k",
    "rl_config.filter_groups_max_batches",
    "rl_config.verifier_weight",
}
TEXT_MODEL = {"model_type": "llama", "tie_word_embeddings": True}
FACTS = {
    **TEXT_MODEL,
    "num_hidden_layers": 4,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}


def kind_of(root: type, path: str) -> Any:
    *sections, key = path.split(".")
    for section in sections:
        root = field_types(root)[section]
    return field_types(root)[key]


def is_number(kind: Any) -> bool:
    if typing.get_origin(kind) is dict:
        return False
    return kind in (int, float) or any(arg in (int, float) for arg in typing.get_args(kind))


def keys_of(is_wanted: Callable[[Any], bool]) -> list[tuple[type, str]]:
    return [
        (root, path) for root in (Config, DatasetConfig) for path in key_paths(root) if is_wanted(kind_of(root, path))
    ]


def test_every_default_is_in_its_range() -> None:
    for root in (Config, DatasetConfig):
        assert check_section(root, default_mapping(root)) == (root(), [])


def errors_of(root: type, path: str, value: Any) -> list[str]:
    """Keys that are wrong where one has this value."""
    tree = default_mapping(root)
    *sections, key = path.split(".")
    section = tree
    for name in sections:
        section = section[name]
    section[key] = [value] if typing.get_origin(kind_of(root, path)) is list else value
    return [problem.key for problem in check_section(root, tree)[1]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 10**30, 10**400, "8", True, {}, -1e30])
def test_no_number_takes_what_is_none_or_absurd(value: Any) -> None:
    for root, path in keys_of(is_number):
        assert errors_of(root, path, value) == [path], (path, value)


def test_numbers_of_a_mapping_have_bounds_too() -> None:
    for value in (math.nan, 1e30, -1, "8"):
        key = "megatron_training.early_warning.stop"
        assert errors_of(Config, key, {"entropy_low": value}) == [key]


def test_minus_one_and_null_are_refused_but_where_they_mean_something() -> None:
    for root, path in keys_of(is_number):
        assert errors_of(root, path, -1) == ([] if path in MAY_BE_NEGATIVE else [path])
        may_be_null = type(None) in typing.get_args(kind_of(root, path))
        assert errors_of(root, path, None) == ([] if may_be_null else [path])


@pytest.mark.parametrize("value", [1, 0, 1.0, "true", "yes", {}])
def test_only_true_and_false_are_true_or_false(value: Any) -> None:
    for root, path in keys_of(lambda kind: kind is bool or bool in typing.get_args(kind)):
        assert errors_of(root, path, value) == [path]


@pytest.mark.parametrize("value", [5, 1.5, True, math.nan, b"x"])
def test_text_is_no_number(value: Any) -> None:
    for path in ("actor_config.load", "megatron_training.run_name", "rl_config.prompt_type"):
        assert errors_of(Config, path, value) == [path]


@pytest.mark.parametrize("written", ["nan", "5", "-1", "1e30", ".inf", "'.nan'"])
def test_a_number_is_no_path_however_it_is_written(tmp_path: Path, written: str) -> None:
    (tmp_path / "run.yaml").write_text(
        f"actor_config: {{load: {written}}}\nmegatron_training: {{output_dir: {written}}}\n"
    )
    (tmp_path / "empty.yaml").write_text("")
    for name, overrides in (
        ("run", []),
        ("empty", [f"actor_config.load={written}", f"megatron_training.output_dir={written}"]),
    ):
        problems = compose_config(name, overrides, tmp_path).problems
        assert {problem.key for problem in problems} == {"actor_config.load", "megatron_training.output_dir"}
    config = compose_config("empty", ["actor_config.load=./5"], tmp_path).config
    assert config.actor_config.load == "./5"


def test_a_path_that_the_file_system_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        'actor_config: {load: "a\\0b"}\nmegatron_training: {data_path: "' + "x" * 300 + '"}\n'
    )
    texts = sorted(problem.text for problem in compose_config("run", (), tmp_path).problems)
    assert texts[0].startswith("actor_config.load: cannot be a path here (embedded null byte), got ")
    assert texts[1].startswith("megatron_training.data_path: cannot be a path here (File name too long), got 'xxxxx")


@pytest.mark.parametrize(
    "key", ["generate_config.kv_cache_memory_gb", "actor_config.lr", "rl_config.max_packing_token_size"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "1e30", "-1"])
def test_validate_goes_on_after_an_absurd_value(tmp_path: Path, key: str, value: str, capsys: Any) -> None:
    (tmp_path / "run.yaml").write_text("defaults: [{model: smollm2_135m}, _self_]\nactor_config: {load: nowhere}\n")
    assert main(["validate", "--config-dir", str(tmp_path), "--config-name", "run", f"{key}={value}"]) == 2
    assert f"error {key}: must be " in capsys.readouterr().out


def test_rules_do_not_judge_what_stands_in_for_a_wrong_value(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.yaml").write_text("defaults: [{model: smollm2_135m}, _self_]\nactor_config: {load: nowhere}\n")
    wrong = ["rl_config.max_prompt_length=4k", "generate_config.max_model_len=1500"]
    assert main(["validate", "--config-dir", str(tmp_path), "--config-name", "run", *wrong]) == 2
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("error")] == [
        "rl_config.max_prompt_length:",
        "megatron_training.data_path:",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": -1}, "hidden_size: must be at least 0, got -1."),
        ({"num_key_value_heads": 1e30}, "num_key_value_heads: must be at most 100,000, got "),
        ({"vocab_size": True}, "vocab_size: must be an integer, got True (true or false)."),
        ({"num_hidden_layers": "4"}, "num_hidden_layers: must be an integer, got '4' (text)."),
        ({"head_dim": 0}, "head_dim: must be at least 1, got 0."),
        ({"max_position_embeddings": math.nan}, "max_position_embeddings: must be an integer, got nan (number)."),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide 4 num_attention_heads, got 3."),
    ],
)
def test_model_folder_with_an_absurd_size_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FACTS | change))
    with pytest.raises(ModelError) as raised:
        read_model_facts(tmp_path)
    assert f"{tmp_path}/config.json: {message}" in str(raised.value)


def test_a_range_shows_the_side_that_was_left() -> None:
    tree = {"rl_config": {"epochs": 0}, "actor_config": {"lr": 2.0}}
    assert [problem.text for problem in check_section(Config, tree)[1]] == [
        "actor_config.lr: must be at most 1, got 2.0. Correct the value.",
        "rl_config.epochs: must be at least 1, got 0. Correct the value.",
    ]
