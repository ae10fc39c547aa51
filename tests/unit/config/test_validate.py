"""Ranges, rules between fields, keys without effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl.config.load import compose_config
from rl.config.validate import find_problems

SMALL = "model_type: qwen2\nnum_hidden_layers: 4\nhidden_size: 8\nintermediate_size: 16\nnum_attention_heads: 4\n"
SMALL += "num_key_value_heads: 2\nvocab_size: 32\nmax_position_embeddings: 8192\n"

CORRECTION = "rl_config.rollout_correction"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "small.yaml").write_text(SMALL)
    text = "defaults: [{model: small}, _self_]\nmegatron_training: {data_path: rows.parquet}\n"
    (tmp_path / "run.yaml").write_text(text + "actor_config: {load: nowhere}\n")
    return tmp_path


def problems_of(folder: Path, *overrides: str) -> list[str]:
    composed = compose_config("run", overrides, folder)
    found = [*composed.problems, *find_problems(composed.config, composed.given)]
    return [f"{problem.severity} {problem.text}" for problem in found if problem.severity != "note"]


def test_find_problems_accepts_the_defaults(folder: Path) -> None:
    assert problems_of(folder) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl_config.epochs=0"], "error rl_config.epochs: must be at least 1, got 0. Correct the value."),
        (["actor_config.lr=0"], "error actor_config.lr: must be above 0, got 0. Correct the value."),
        (
            ["rl_config.clip_ratio=1.5"],
            "error rl_config.clip_ratio: must be at most 1, got 1.5. Correct the value.",
        ),
        (
            ["actor_config.lr=nan"],
            "error actor_config.lr: must be a finite number, got nan (number). Write a number such as 0.2.",
        ),
        (
            ["generate_config.dtype=float16"],
            "error generate_config.dtype: must be one of bfloat16, float32, got 'float16' (text). "
            "Did you mean 'bfloat16'?",
        ),
        (
            ["generate_config.sampling_config.temperature=0"],
            "error generate_config.sampling_config.temperature: must be above 0, got 0. Correct the value.",
        ),
        (
            ["rl_config.n_samples_per_prompt=1"],
            "error rl_config.n_samples_per_prompt: must be at least 2 for group_norm, got 1. "
            "Raise it, to 8 for example.",
        ),
        (
            ["rl_config.mini_batch_size=64"],
            "error rl_config.mini_batch_size: must be at most megatron_training.global_batch_size, 32 prompts, got 64. "
            "Lower it, or remove it.",
        ),
        (
            ["actor_config.tensor_model_parallel_size=4", "rl_config.actor_resource.num_devices=4"],
            "error actor_config.tensor_model_parallel_size: must divide 4 attention heads and 2 key-value heads, got "
            "4. Set one of 1, 2.",
        ),
        (
            ["actor_config.pipeline_model_parallel_size=3", "rl_config.actor_resource.num_devices=3"],
            "error actor_config.pipeline_model_parallel_size: must divide 4 layers, got 3. Set one of 1, 2, 4.",
        ),
        (
            [
                "actor_config.pipeline_model_parallel_size=2",
                "actor_config.num_layers_per_virtual_pipeline_stage=3",
                "rl_config.actor_resource.num_devices=2",
            ],
            "error actor_config.num_layers_per_virtual_pipeline_stage: must divide the 2 layers of a pipeline rank, "
            "got 3. Set one of 1, 2.",
        ),
        (
            ["actor_config.tensor_model_parallel_size=2", "rl_config.actor_resource.num_devices=3"],
            "error rl_config.actor_resource.num_devices: must be a multiple of tensor (2) times pipeline (1) parallel "
            "size, got 3. Set 2, or change the parallel sizes.",
        ),
        (
            ["generate_config.infer_tensor_parallel_size=3"],
            "error generate_config.infer_tensor_parallel_size: must divide 4 attention heads, got 3. Set one of 1, 2.",
        ),
        (
            ["generate_config.max_model_len=3071"],
            "error generate_config.max_model_len: must hold rl_config.max_prompt_length (2048) plus "
            "generate_config.sampling_config.max_tokens (1024), got 3071. Set 3072, or lower those.",
        ),
        (
            ["generate_config.max_model_len=9000"],
            "error generate_config.max_model_len: the model was trained for 8192 tokens, got 9000. Lower it.",
        ),
        (
            [
                "generate_config.sampling_config.max_tokens=3000",
                "rl_config.multi_turn_enable=true",
                "rl_config.tool_config_path=tools.yaml",
            ],
            "error generate_config.sampling_config.max_tokens: one turn must fit into "
            "rl_config.max_total_response_length, 2048, got 3000. Set at most 2048.",
        ),
        (
            ["generate_config.sampling_config.top_p=0.9"],
            "error generate_config.sampling_config.top_p: must be 1 in training, got 0.9: cut tails would make the "
            "log-probs those of another distribution. Remove it; generate_config.eval_sampling_config may cut them.",
        ),
        (
            ["rl_config.verifier_function=[base_acc,format]"],
            "error rl_config.verifier_weight: must have a weight for each of 2 rewards, got 1. "
            "Set [1.0, 1.0], for example.",
        ),
        (
            ["rl_config.filter_groups_enable=true", "rl_config.filter_groups_metric=acc_for_dapo"],
            "error rl_config.filter_groups_metric: must be 'score' or a reward of verifier_function (base_acc), "
            "got 'acc_for_dapo'. Set score.",
        ),
        (
            ["rl_config.overlong_buffer_enable=true"],
            "error rl_config.overlong_buffer: must be from 1 to rollout_max_tokens, 2048, got 0. "
            "Set the tokens before the limit where the penalty begins.",
        ),
        (
            ["rl_config.overlong_buffer_enable=true", "rl_config.overlong_buffer=2049"],
            "error rl_config.overlong_buffer: must be from 1 to rollout_max_tokens, 2048, got 2049. "
            "Set the tokens before the limit where the penalty begins.",
        ),
        (
            ["rl_config.multi_turn_enable=true"],
            "error rl_config.tool_config_path: must name a tool YAML with multi_turn_enable, got nothing. "
            "Set configs/tools/retool_config.yaml, for example.",
        ),
        (
            ["megatron_training.run_name=a/b"],
            "error megatron_training.run_name: must be the name of one folder, got 'a/b'. "
            "Put its place into output_dir.",
        ),
        (
            [f"{CORRECTION}.rollout_is_threshold=-1"],
            f"error {CORRECTION}.rollout_is_threshold: must be above 0, got -1. Correct the value.",
        ),
        (
            [f"{CORRECTION}.rollout_is_threshold_lower=3"],
            f"error {CORRECTION}.rollout_is_threshold_lower: must be at most rollout_is_threshold, 2, got 3. "
            "Lower it, or remove it.",
        ),
        (
            [f"{CORRECTION}.rollout_rs=seq_mean_k1"],
            f"error {CORRECTION}.rollout_rs_threshold: must be given with rollout_rs seq_mean_k1, got null. "
            "Set 2.0 for a ratio (seq_*_k1), 0.1 for a divergence, for example.",
        ),
        (
            [
                f"{CORRECTION}.rollout_rs=seq_max_k3",
                f"{CORRECTION}.rollout_rs_threshold=0.1",
                f"{CORRECTION}.rollout_rs_threshold_lower=0.05",
            ],
            f"error {CORRECTION}.rollout_rs_threshold_lower: a divergence such as seq_max_k3 has no lower bound, got "
            "0.05. Remove it, or set rollout_rs to seq_mean_k1.",
        ),
        (
            [f"{CORRECTION}.bypass_mode=true"],
            f"error {CORRECTION}.bypass_mode: policy_loss clip then already has the ratio to the engine's policy, got "
            "rollout_is token to weigh by it again. Set rollout_is to null, or bypass_mode to false.",
        ),
        (
            [f"{CORRECTION}.rollout_is=null", f"{CORRECTION}.rollout_is_threshold=3"],
            f"warning {CORRECTION}.rollout_is_threshold: has no effect, got 3.0, because rollout_is is null. "
            "Set token or sequence.",
        ),
        (
            [f"{CORRECTION}.rollout_rs_threshold=3"],
            f"warning {CORRECTION}.rollout_rs_threshold: has no effect, got 3.0, because rollout_rs is null. Set that.",
        ),
        (
            ["rl_config.max_skipped_steps=0"],
            "error rl_config.max_skipped_steps: must be at least 1, got 0. Correct the value.",
        ),
        (
            ["rl_config.filter_groups_enable=true", "rl_config.filter_groups_metric=acc"],
            "error rl_config.filter_groups_metric: must be 'score' or a reward of verifier_function (base_acc), got "
            "'acc'. Set score.",
        ),
        (
            ["megatron_training.eval_interval=5"],
            "warning megatron_training.eval_interval: has no effect without eval_data_path. Set that, or remove this.",
        ),
        (
            ["rl_config.clip_ratio_high=0.3"],
            "warning rl_config.clip_ratio_high: has no effect, got 0.3, because clip_higher_enable is false. "
            "Set that, or clip_ratio.",
        ),
        (
            ["rl_config.kl_penalty=k1"],
            "warning rl_config.kl_penalty: has no effect, got k1, because init_kl_coef is 0. Set that above 0.",
        ),
        (
            ["rl_config.environment=world.py:World", "rl_config.verifier_function=[environment]"],
            "error rl_config.environment: needs multi_turn_enable, got 'world.py:World'. Set that to true.",
        ),
        (
            ["rl_config.environment=world.py:World", "rl_config.multi_turn_enable=true"],
            "warning rl_config.verifier_function: does not name 'environment', so rewards of world.py:World do not "
            "count. Add it, unless it gives none.",
        ),
        (
            [
                *["rl_config.environment=world.py:World", "rl_config.rollout_function=world.py:lead"],
                *["rl_config.multi_turn_enable=true", "rl_config.verifier_function=[environment]"],
            ],
            "error rl_config.environment: only one of environment, rollout_function and agent_function can lead the "
            "trajectories, got environment and rollout_function. Remove one of them.",
        ),
        (
            ["rl_config.environment_kwargs={size: 3}"],
            "warning rl_config.environment_kwargs: has no effect, got {'size': 3}, because environment is tools. "
            "Set that.",
        ),
        (
            ["rl_config.max_staleness=1", "rl_config.in_process=true"],
            "error rl_config.max_staleness: must be 0 with in_process, where rollouts and update take turns, got 1. "
            "Set 0.",
        ),
        (
            ["rl_config.staleness_strategy=drop"],
            "warning rl_config.staleness_strategy: has no effect, got drop, because max_staleness is 0, so each step "
            "waits for all rollouts. Set that above 0.",
        ),
        (
            ["rl_config.over_sample_rate=0.5", "megatron_training.rollout_only=true"],
            "warning rl_config.over_sample_rate: has no effect, got 0.5, because rollout_only and replay have no "
            "update for rollouts to run ahead of. Remove it.",
        ),
        (
            ["rl_config.max_tool_calls=3"],
            "warning rl_config.max_tool_calls: has no effect, got 3, because multi_turn_enable is false. Set that.",
        ),
    ],
)
def test_find_problems_names_the_key_the_value_and_the_remedy(folder: Path, overrides: list[str], message: str) -> None:
    assert problems_of(folder, *overrides) == [message]


def test_find_problems_lets_a_loss_without_ratio_be_weighed_in_bypass_mode(folder: Path) -> None:
    assert problems_of(folder, f"{CORRECTION}.bypass_mode=true", "rl_config.policy_loss=reinforce") == []
    assert problems_of(folder, f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=null") == []


def test_find_problems_is_silent_on_a_default_written_out(folder: Path) -> None:
    assert problems_of(folder, "rl_config.clip_ratio_high=0.28", "rl_config.kl_penalty=low_var_kl") == []


def test_find_problems_allows_replicated_key_value_heads_in_the_engine(folder: Path) -> None:
    assert problems_of(folder, "generate_config.infer_tensor_parallel_size=4") == []


def test_an_environment_is_the_score_where_no_reward_is_named(folder: Path) -> None:
    chosen = ["rl_config.environment=world.py:World", "rl_config.multi_turn_enable=true"]
    assert problems_of(folder, *chosen, "rl_config.verifier_function=[]", "rl_config.verifier_weight=[]") == []


def test_find_problems_collects_all(folder: Path) -> None:
    found = problems_of(folder, "rl_config.n_samples_per_prompt=1", "rl_config.mini_batch_size=99")
    assert len(found) == 2


def test_find_problems_prefers_the_folder_and_rejects_a_contradicting_section(folder: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "weights", num_hidden_layers=6)
    (found,) = problems_of(folder, f"actor_config.load={path}")
    assert found.startswith("error model: describes another model than config.json in ")
    assert "got num_hidden_layers 4 (there 6). Remove the section: `~model` on the command line, " in found


def test_find_problems_names_a_corrupt_model_folder(folder: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "weights")
    (path / "config.json").write_text("{")
    (found,) = problems_of(folder, f"actor_config.load={path}")
    assert found.startswith(f"error actor_config.load: {path}/config.json: cannot be read, got ")


def test_find_problems_notes_an_absent_folder(folder: Path) -> None:
    (problem,) = find_problems(compose_config("run", (), folder).config)
    assert problem.severity == "note"
    assert "no folder 'nowhere' on this machine" in problem.text


def write_model(path: Path, **changes: Any) -> Path:
    facts = {
        "model_type": "qwen2",
        "num_hidden_layers": 4,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "max_position_embeddings": 8192,
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(facts | changes))
    return path


def test_an_agent_function_runs_its_own_tools(folder: Path) -> None:
    found = problems_of(
        folder,
        "rl_config.agent_function=agent.py:solve",
        "rl_config.multi_turn_enable=true",
        "rl_config.verifier_function=[environment]",
        "rl_config.tool_config_path=configs/tools/calculator.yaml",
        "rl_config.max_tool_calls=3",
    )
    tools, limit = found
    assert tools.startswith("error rl_config.tool_config_path: an agent function runs its own tools, got '")
    assert limit.startswith("warning rl_config.max_tool_calls: ") and "an agent_function runs its own tools" in limit
