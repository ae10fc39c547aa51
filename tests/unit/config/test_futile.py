"""Settings that cannot do what they say, rules only where they apply, and one message for another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.config.load import compose_config
from rl.config.validate import Task, find_problems
from tests.unit.config.test_ranges import FACTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "same.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "run.yaml").write_text(
        "defaults: [{model: smollm2_135m}, _self_]\nactor_config: {load: nowhere}\n"
        "megatron_training: {data_path: rows.jsonl, eval_data_path: eval.jsonl}\n"
    )
    return tmp_path


def problems_of(folder: Path, *overrides: str, task: Task = Task.TRAIN) -> list[str]:
    composed = compose_config("run", overrides, folder)
    found = [*composed.problems, *find_problems(composed.config, composed.given, task)]
    return [f"{problem.severity} {problem.text}" for problem in found if problem.severity != "note"]


EVAL = "generate_config.eval_sampling_config"
TOOLS = ["rl_config.multi_turn_enable=true", "rl_config.tool_config_path=tools.yaml"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [f"{EVAL}.num_samples=8"],
            f"warning {EVAL}.num_samples: with temperature 0 all samples of a prompt are the same",
        ),
        (
            [f"{EVAL}.num_samples=8", f"{EVAL}.temperature=1", f"{EVAL}.top_k=1"],
            f"warning {EVAL}.num_samples: with top_k 1 all samples",
        ),
        (
            [f"{EVAL}.top_p=0.9"],
            f"warning {EVAL}.top_p: has no effect, got 0.9, because eval_sampling_config.temperature is",
        ),
        (
            ["megatron_training.eval_data_path=rows.jsonl"],
            "warning megatron_training.eval_data_path: has the file that is",
        ),
        (
            ["megatron_training.eval_data_path=same.jsonl"],
            "warning megatron_training.eval_data_path: has the file that is",
        ),
        (
            ["megatron_training.eval_before_train=false", "megatron_training.eval_after_train=false"],
            "warning megatron_training.eval_data_path: is not read by `rl train`",
        ),
        (
            ["megatron_training.eval_interval=200"],
            "warning megatron_training.eval_interval: has no effect, got 200, because the run ends after 100 steps",
        ),
        (
            ["rl_config.verifier_weight=[0.0]"],
            "warning rl_config.verifier_weight: every score is 0, so the model learns nothing",
        ),
        (
            [
                "rl_config.overlong_buffer_enable=true",
                "rl_config.overlong_buffer=1500",
                "rl_config.overlong_buffer_penalty_factor=0",
            ],
            "warning rl_config.overlong_buffer_enable: subtracts nothing, got overlong_buffer_penalty_factor 0.",
        ),
        (
            ["actor_config.lr_warmup_fraction=1", "actor_config.lr_decay_style=cosine"],
            "warning actor_config.lr_decay_style: has no effect, got cosine, because the warm-up lasts the whole run.",
        ),
        (
            [*TOOLS, "rl_config.max_tool_calls=0"],
            "warning rl_config.max_tool_calls: tools are offered but never run",
        ),
        (
            [*TOOLS, "rl_config.max_parallel_calls=4"],
            "warning rl_config.max_parallel_calls: a trajectory has max_tool_calls 1",
        ),
        (
            ["megatron_training.device=cpu", "generate_config.gpu_memory_utilization=0.9"],
            "warning generate_config.gpu_memory_utilization: has no effect, got 0.9, because megatron_training.dev",
        ),
    ],
)
def test_what_cannot_be_had_is_told(folder: Path, overrides: list[str], message: str) -> None:
    (found,) = problems_of(folder, *overrides)
    assert found.startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [f"{EVAL}.num_samples=8", f"{EVAL}.temperature=1"],
        ["rl_config.verifier_weight=[-1.0]"],
        [*TOOLS, "rl_config.max_tool_calls=4", "rl_config.max_parallel_calls=4"],
    ],
)
def test_what_can_be_had_is_not_told(folder: Path, overrides: list[str]) -> None:
    assert problems_of(folder, *overrides) == []


@pytest.mark.parametrize(
    "override",
    [
        "generate_config.sampling_config.max_tokens=2049",  # above max_total_response_length, which bounds tools
        "rl_config.max_total_response_length=100000",
        "rl_config.rollout_correction={rollout_is: null, rollout_is_threshold_lower: 3}",
    ],
)
def test_a_rule_of_tools_or_corrections_is_not_judged_without_them(folder: Path, override: str) -> None:
    overrides = [override, "rl_config.max_prompt_length=1024"]
    assert [text for text in problems_of(folder, *overrides) if text.startswith("error")] == []


def test_rules_of_training_do_not_stop_a_cold_start_or_an_evaluation(folder: Path) -> None:
    overrides = ["rl_config.mini_batch_size=64", "rl_config.verifier_weight=[1.0, 1.0]"]
    assert len(problems_of(folder, *overrides)) == 2
    assert problems_of(folder, *overrides, task=Task.SFT) == []
    assert problems_of(folder, *overrides, task=Task.EVALUATE) == []
    assert problems_of(folder, "rl_config.max_prompt_length=8000", task=Task.SFT) == []
    assert problems_of(folder, "rl_config.actor_resource.num_devices=3", "actor_config.tensor_model_parallel_size=2")
    layout = ["rl_config.actor_resource.num_devices=2", "actor_config.tensor_model_parallel_size=2"]
    assert problems_of(folder, *layout, task=Task.EVALUATE) == []


def test_another_model_than_the_section_is_one_error_that_says_how_to_leave_it_out(folder: Path) -> None:
    own = folder / "own"
    own.mkdir()
    (own / "config.json").write_text(json.dumps(FACTS | {"max_position_embeddings": 8192}))
    (found,) = problems_of(folder, f"actor_config.load={own}", "model.model_type=llama")
    assert "got num_hidden_layers 30 (there 4), hidden_size 576 (there 8), intermediate_size 1536 (there 16)," in found
    assert "`~model` on the command line, `- override /model: null` in your file's `defaults`" in found
    assert problems_of(folder, f"actor_config.load={own}", "~model") == []
    assert problems_of(folder, f"actor_config.load={own}", "model=null") == []
    (folder / "mine.yaml").write_text(
        f"defaults: [run, override /model: null, _self_]\nactor_config: {{load: {own}}}\n"
    )
    composed = compose_config("mine", (), folder)
    assert find_problems(composed.config, composed.given) == []
