"""Bad input: what is wrong with model, data, tools, rewards or memory is told before a process starts."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from rl.config.correction import RolloutCorrection
from rl.config.kinds import TrackerName
from rl.config.schema import Config, DatasetConfig, Device, ResumeMode
from rl.data.preprocess import preprocess
from rl.errors import ConfigError, DataError
from rl.preflight import inspect_run, preflight, preflight_evaluation, preflight_sft
from rl.rewards.truths import accepted_answers
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Config:
    rows = [
        {"messages": [{"role": "user", "content": text}], "ground_truth": "2", "data_source": "sums"} for text in "ab"
    ]
    rows[1]["messages"][0]["content"] = "one and one " * 50
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config()
    config.megatron_training.data_path = str(data)
    config.megatron_training.device = Device.CPU
    config.actor_config.load = str(model)
    config.rl_config.max_prompt_length = 100
    config.rl_config.max_total_response_length = 200
    config.rl_config.max_tool_response_length = 50
    config.rl_config.tool_config_path = str(ROOT / "configs/tools/retool_config.yaml")
    config.rl_config.multi_turn_enable = True
    config.rl_config.prompt_type = "qwen"
    config.rl_config.max_prompt_length = 400
    config.generate_config.max_model_len = 600
    config.generate_config.sampling_config.max_tokens = 200
    config.generate_config.kv_cache_memory_gb = 0.1
    return config


def test_preflight_returns_the_prompts_that_are_short_enough(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    kept, evaluation = preflight(config)
    assert evaluation == []
    assert [prompt.messages[0]["content"] for prompt in kept] == ["a"]
    assert "dropped 1 of 2 prompts with more than rl_config.max_prompt_length = 400 tokens." in caplog.text


def test_preflight_warns_of_tool_settings_without_effect(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = Path(str(config.rl_config.tool_config_path)).read_text()
    tools = tmp_path / "tools.yaml"
    tools.write_text(shipped.replace("      rate_limit:", "      num_workers: 4\n      rate_limit:"))
    config.rl_config.tool_config_path = str(tools)
    preflight(config)
    assert "tools[1].config.num_workers: has no effect, 'code_interpreter' is asynchronous" in caplog.text
    assert any("num_workers: has no effect" in problem.text for problem in inspect_run(config, is_strict=False))


def test_preflight_warns_of_rows_for_another_prompt_type(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = DatasetConfig(
        input=config.megatron_training.data_path,
        output_prefix=str(tmp_path / "for_retool"),
        map_keys={"prompt": "messages", "response": "ground_truth"},
        prompt_type="qwen_retool",
    )
    config.megatron_training.data_path = str(preprocess(dataset))
    text = (
        "megatron_training.data_path: its rows were preprocessed for prompt_type 'qwen_retool', got "
        "rl_config.prompt_type 'qwen'. Set rl_config.prompt_type=qwen_retool"
    )
    for check in (preflight, preflight_sft):
        caplog.clear()
        check(config)
        assert text in caplog.text
    assert any(text in problem.text for problem in inspect_run(config, is_strict=False))
    config.rl_config.prompt_type = "qwen_retool"
    assert not any("preprocessed for" in problem.text for problem in inspect_run(config, is_strict=False))


def test_preflight_says_when_no_prompt_is_short_enough(config: Config) -> None:
    config.rl_config.max_prompt_length = 3
    with pytest.raises(DataError, match=r"rl_config.max_prompt_length: no prompt has at most 3 tokens"):
        preflight(config)


def test_preflight_sft_needs_neither_rewards_nor_tools_services_nor_evaluation_prompts(config: Config) -> None:
    config.rl_config.verifier_function = ["no_such_reward"]
    config.megatron_training.eval_data_path = {"eval": "nowhere.parquet"}
    preflight_sft(config)


@pytest.mark.parametrize("training_data", ["", "nowhere.parquet"])
def test_preflight_evaluation_needs_no_training_prompts(config: Config, training_data: str) -> None:
    config.megatron_training.eval_data_path = {"train": config.megatron_training.data_path}
    config.megatron_training.data_path = training_data
    preflight_evaluation(config)


def test_preflight_evaluation_returns_the_prompts_that_are_short_enough(config: Config, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}], "ground_truth": "4", "data_source": "sums"}
        for text in ("2 + 2?", "2 + 2? " * 200, "1 + 3?")
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.megatron_training.eval_data_path = {"test": str(tmp_path / "test.jsonl")}
    assert [prompt.id for prompt in preflight_evaluation(config)] == ["test-1", "test-3"]
    assert [prompt.id for prompt in preflight(config)[1]] == ["test-1", "test-3"]


def test_preflight_evaluation_returns_the_prompts_of_all_sets(config: Config, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "2 + 2?"}], "ground_truth": "4", "data_source": "sums"}
    for folder in ("math", "search"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "eval.jsonl").write_text(json.dumps(row) + "\n")
    sets = {name: str(tmp_path / name / "eval.jsonl") for name in ("math", "search")}
    config.megatron_training.eval_data_path = sets
    prompts = preflight_evaluation(config)
    assert [(prompt.id, prompt.evaluation_set) for prompt in prompts] == [("math-1", "math"), ("search-1", "search")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"megatron_training.eval_data_path.search: .*search.jsonl: the data file does not exist"),
        ("", r"megatron_training.eval_data_path.search: .*search.jsonl: the file has no rows"),
        (
            "{}\n",
            r"megatron_training.eval_data_path.search: .*search.jsonl, row 1: no column with the prompt, got none",
        ),
    ],
)
def test_preflight_evaluation_names_the_set_that_is_wrong(
    config: Config, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "search.jsonl").write_text(content)
    config.megatron_training.eval_data_path = {
        "math": config.megatron_training.data_path,
        "search": str(tmp_path / "search.jsonl"),
    }
    with pytest.raises(ConfigError, match=message):
        preflight_evaluation(config)


def test_preflight_evaluation_names_the_set_without_short_prompts(config: Config, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "2 + 2? " * 200}], "ground_truth": "4", "data_source": "sums"}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    sets = {"math": config.megatron_training.data_path, "long": str(tmp_path / "long.jsonl")}
    config.megatron_training.eval_data_path = sets
    with pytest.raises(DataError, match=r"megatron_training.eval_data_path.long: .*no prompt has at most 400 tokens"):
        preflight_evaluation(config)


@pytest.mark.parametrize("check", [preflight, preflight_evaluation, preflight_sft])
def test_preflight_loads_tokenizer_tools_and_each_data_file_once(
    config: Config, monkeypatch: pytest.MonkeyPatch, check: Callable[[Config], object]
) -> None:
    questions = Path(config.megatron_training.data_path).with_name("test.jsonl")
    questions.write_text(Path(config.megatron_training.data_path).read_text())
    config.megatron_training.eval_data_path = {"test": str(questions)}
    calls: Counter[str] = Counter()

    def count(target: str) -> None:
        module, _, name = target.rpartition(".")
        function = getattr(importlib.import_module(module), name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[f"{name} {args[0]}" if name == "load_prompts" else name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(target, counted)

    for target in ("rl.rollout.dialog.load_tokenizer", "rl.tools.registry.read_entries", "rl.run.parts.load_prompts"):
        count(target)
    check(config)
    assert set(calls.values()) == {1}
    assert calls["load_tokenizer"] == calls["read_entries"] == 1


def test_preflight_evaluation_needs_a_set(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"megatron_training.eval_data_path: must name evaluation sets, got nothing"):
        preflight_evaluation(config)


def test_preflight_evaluation_needs_no_memory_for_an_actor(config: Config) -> None:
    config.megatron_training.eval_data_path = {"train": config.megatron_training.data_path}
    config.rl_config.actor_resource.num_devices = 100_000
    preflight_evaluation(config)
    with pytest.raises(ConfigError, match="of memory"):
        preflight(config)


@pytest.mark.parametrize("check", [preflight, preflight_sft, preflight_evaluation])
def test_preflight_looks_where_a_run_writes_before_anything_starts(
    config: Config, tmp_path: Path, check: Callable[[Config], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config.megatron_training.eval_data_path = {"train": config.megatron_training.data_path}
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    config.megatron_training.output_dir, config.megatron_training.run_name = str(tmp_path), "taken"
    with pytest.raises(
        ConfigError, match=r"megatron_training.run_name: .*/taken exists already, and no run overwrites"
    ):
        check(config)
    config.megatron_training.resume_mode = ResumeMode.AUTO  # goes on in a directory of another number
    check(config)
    config.megatron_training.run_name = None
    with pytest.raises(ConfigError, match=r"megatron_training.run_name: resume_mode auto finds .* got none\. Set a"):
        check(config)
    config.megatron_training.resume_mode = ResumeMode.PATH
    config.megatron_training.output_dir = str(tmp_path / "file" / "runs")
    with pytest.raises(ConfigError, match=r"megatron_training.output_dir: no folder can be made in .*/file, got"):
        check(config)
    config.megatron_training.output_dir, config.megatron_training.run_name = str(tmp_path), None
    config.megatron_training.trackers = [TrackerName.WANDB]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"megatron_training.trackers: wandb needs the package wandb, which is not installed"
    ):
        check(config)


def test_preflight_names_shared_memory_that_is_too_small(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.config.memory_check.free_shared_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"shared memory and a step's .* 0.50 GiB, 0.00 GiB are free in"):
        preflight(config)


def spoil(**changes: object) -> Callable[[Config], None]:
    """Set fields, by the section's first letter: `r_epochs` is `rl_config.epochs`."""
    sections = {"m": "megatron_training", "a": "actor_config", "r": "rl_config", "g": "generate_config"}

    def apply(config: Config) -> None:
        for name, value in changes.items():
            section, _, key = name.partition("_")
            setattr(getattr(config, sections[section]), key, value)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            spoil(r_adv_estimator="grupo_norm"),
            "rl_config.adv_estimator: unknown name 'grupo_norm'. Did you mean 'group_norm'?",
        ),
        (spoil(r_policy_loss="sft"), "rl_config.policy_loss: unknown name 'sft'."),
        (
            spoil(r_adv_estimator="gae"),
            "rl_config.adv_estimator: gae needs a critic, which is not supported. Choose from group_norm, rloo, ",
        ),
        (spoil(r_tool_parser_format="hermees"), "Did you mean 'hermes'?"),
        (spoil(r_tool_parser_format="qwen3_coder"), "the chat template writes a tool call as"),
        (
            spoil(r_prompt_type="qwen_retol"),
            "rl_config.prompt_type: unknown name 'qwen_retol'. Did you mean 'qwen_retool'?",
        ),
        (
            spoil(r_verifier_function=["base_ac"]),
            "rl_config.verifier_function: unknown name 'base_ac'. Did you mean 'base_acc'?",
        ),
        (
            spoil(r_filter_groups_enable=True, r_filter_groups_metric="base_acc/acc"),
            "rl_config.filter_groups_metric: base_acc returns its score alone, got 'base_acc/acc'. Set base_acc,",
        ),
        (
            spoil(r_rollout_correction=RolloutCorrection(rollout_rs="seq_mean_k4", rollout_rs_threshold=2.0)),
            "rl_config.rollout_correction.rollout_rs: unknown name 'seq_mean_k4'. Did you mean 'seq_mean_k3'?",
        ),
        (spoil(r_verifier_function=["no.such:f"]), "rl_config.verifier_function: 'no.such:f' does not import"),
        (spoil(r_environment="nowhere.py:World"), "rl_config.environment: 'nowhere.py' does not import"),
        (spoil(r_environment="toolz"), "rl_config.environment: unknown name 'toolz'. Did you mean 'tools'?"),
        (
            spoil(r_environment="collections:OrderedDict", r_environment_kwargs={}),
            "rl_config.environment: 'collections:OrderedDict' has no method reset. Write `async def reset(self, ...)`.",
        ),
        (
            spoil(r_rollout_function="json:dumps"),
            "rl_config.rollout_function: 'json:dumps' must be `async def`",
        ),
        (spoil(r_tool_config_path="nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (
            spoil(g_infer_tensor_parallel_size=2),
            "generate_config.infer_tensor_parallel_size: must be 1 on CPU, where an engine has all its cores anyway, "
            "got 2.",
        ),
        (spoil(m_data_path=""), "megatron_training.data_path: must name a data file, got nothing. Set what"),
        (
            spoil(m_data_path="nowhere.parquet"),
            "megatron_training.data_path: nowhere.parquet: the data file does not exist.",
        ),
        (
            spoil(m_eval_data_path={"eval": "nowhere.parquet"}),
            "megatron_training.eval_data_path: nowhere.parquet: the data file does not exist.",
        ),
        (spoil(a_load="nowhere"), "actor_config.load: no folder 'nowhere'."),
        (spoil(g_kv_cache_memory_gb=1e5), "of memory, "),
    ],
)
def test_preflight_names_what_is_wrong(config: Config, change: Callable[[Config], None], message: str) -> None:
    change(config)
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"junk", "not a safetensors file"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("model.safetensors", save({}), "the tensor model.embed_tokens.weight is missing or unreadable"),
        ("config.json", b'{"model_type": "mamba"}', "'num_hidden_layers' must be an integer, got None."),
        ("tokenizer.json", None, "holds no tokenizer (tokenizer.json)"),
    ],
)
def test_preflight_names_what_is_wrong_with_a_model_folder(
    config: Config, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = make_tiny_model(tmp_path / "spoiled")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    config.actor_config.load = str(folder)
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 1}, "up_proj.weight: config.json says (1, "),
        ({"hidden_act": "gelu"}, "hidden_act: only silu is supported, got 'gelu'."),
    ],
)
def test_preflight_rejects_a_config_of_another_model(
    config: Config, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = make_tiny_model(tmp_path / "other")
    facts = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(facts))
    config.actor_config.load = str(folder)
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    assert message in str(raised.value)


def test_preflight_names_what_a_users_file_raises(config: Config, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("threshold = undefined")
    config.rl_config.verifier_function = [f"{tmp_path}/mine.py:f"]
    with pytest.raises(ConfigError, match=r"mine.py:f' does not import: NameError: name 'undefined' is not defined."):
        preflight(config)


def test_preflight_rejects_an_unsupported_family(config: Config, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "other")
    facts = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2_moe"}
    (folder / "config.json").write_text(json.dumps(facts))
    config.actor_config.load = str(folder)
    with pytest.raises(ConfigError, match=r"model_type: unknown name 'qwen2_moe'. Did you mean 'qwen2'\?"):
        preflight(config)


def test_preflight_gives_the_row_of_malformed_data(config: Config) -> None:
    Path(config.megatron_training.data_path).write_text(
        '{"messages": "hello", "ground_truth": "1", "data_source": "a"}\n'
    )
    with pytest.raises(ConfigError, match=r"rows.jsonl, row 1: .*messages"):
        preflight(config)


@pytest.mark.parametrize(
    ("reward", "truth", "message"),
    [
        ("search_em", {"answer": "Lisbon"}, "search_em: the ground truth is a record without target or ground_truth"),
        ("search_f1", "a", "search_f1: the ground truth is empty after normalization, got 'a'."),
        ("math_acc", "", "math_acc: the ground truth is empty after normalization, got ''."),
        ("base_acc", [], "base_acc: the ground truth is an empty list."),
        ("gsm8k_boxed", "work\n####", "gsm8k_boxed: the ground truth is empty after normalization"),
        ("retool_reward", "['1']", "retool_reward: the ground truth looks like a list or a record, but is not JSON"),
        ("rl.rewards.rules:base_acc", "$", "rl.rewards.rules:base_acc: the ground truth is empty after normalization"),
        ("reasoning_gym", "4", "reasoning_gym: the row needs the columns task and entry"),
    ],
)
def test_preflight_gives_the_row_that_a_reward_cannot_read(
    config: Config, reward: str, truth: object, message: str
) -> None:
    good = {"messages": [{"role": "user", "content": "a"}], "ground_truth": "2", "data_source": "sums"}
    if reward == "reasoning_gym":
        good |= {"task": "gcd", "entry": "{}"}
    bad = good | {"ground_truth": truth, "task": None}
    path = Path(config.megatron_training.data_path)
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad, good, bad)))
    config.rl_config.verifier_function, config.rl_config.verifier_weight = [reward, "format"], [1.0, 1.0]
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"megatron_training.data_path: {path}, row 2: {message}")
    assert line.endswith(" 2 of 4 rows are like that.")
    preflight_sft(config)


def test_preflight_reads_every_shape_of_ground_truth_that_rewards_know(config: Config) -> None:
    truths = ["Lisbon", ["Lisbon", "Lisboa"], [18, 18.5], {"target": "Lisbon"}, {"target": ["Lisbon"]}, 18, "[1, 2]"]
    row = {"messages": [{"role": "user", "content": "a"}], "data_source": "sums"}
    path = Path(config.megatron_training.data_path)
    path.write_text("".join(json.dumps(row | {"ground_truth": truth}) + "\n" for truth in truths))
    names = ["base_acc", "math_acc", "retool_reward", "gsm8k_boxed", "search_em", "search_f1"]
    config.rl_config.verifier_function, config.rl_config.verifier_weight = names, [1.0] * len(names)
    prompts, _ = preflight(config)
    assert [accepted_answers(prompt.ground_truth, is_math=True) for prompt in prompts] == [
        ["Lisbon"], ["Lisbon", "Lisboa"], ["18", "18.5"], ["Lisbon"], ["Lisbon"], ["18"], ["[1, 2]"]
    ]  # fmt: skip


def test_preflight_tells_misspelled_arguments_from_inherited_ones(config: Config) -> None:
    config.rl_config.verifier_kwargs = {"reasoning_gym": {"min_score": 0.9}, "base_ac": {}}
    with pytest.raises(ConfigError, match=r"verifier_kwargs: unknown name 'base_ac'\. Did you mean 'base_acc'"):
        preflight(config)
    del config.rl_config.verifier_kwargs["base_ac"]
    preflight(config)
    texts = [problem.text for problem in inspect_run(config, is_strict=False)]
    assert any(text.startswith("rl_config.verifier_kwargs.reasoning_gym: has no effect") for text in texts)


def test_inspect_run_notes_what_is_absent_where_it_need_not_be_there(config: Config) -> None:
    absent = dataclasses.replace(config.megatron_training, data_path="nowhere.parquet")
    config.megatron_training = absent
    config.actor_config.load = "nowhere"
    problems = inspect_run(config, is_strict=False)
    assert {problem.severity for problem in problems} == {"note"}
    assert len(problems) == 2
