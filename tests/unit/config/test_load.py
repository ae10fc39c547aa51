"""Composition: files, overrides, types, suggestions, what is saved."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from rl.config.load import compose_config, load_config, load_dataset_config, save_resolved
from rl.config.schema import KlPenalty, LrDecayStyle
from rl.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder with a group, a shared base and one run."""
    files = {
        "model/small.yaml": "hidden_size: 8\n",
        "model/large.yaml": "hidden_size: 64\n",
        "base/shared.yaml": (
            "# @package _global_\ndefaults: [/model: small]\nrl_config: {epochs: 2, entropy_coeff: 0.5}\n"
        ),
        "run.yaml": "defaults: [base/shared, _self_]\nrl_config: {epochs: 3}\nactor_config: {lr: 1e-5}\n",
        "datasets/rows.yaml": "input: a.jsonl\noutput_prefix: out/a\nmap_keys: {prompt: question, response: answer}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def errors_of(folder: Path, *overrides: str) -> list[str]:
    return [problem.text for problem in compose_config("run", overrides, folder).problems]


def test_load_takes_defaults_base_file_and_override_in_that_order(folder: Path) -> None:
    config = load_config("run.yaml", ["rl_config.n_samples_per_prompt=4"], folder)
    assert config.rl_config.epochs == 3
    assert config.rl_config.entropy_coeff == 0.5
    assert config.rl_config.n_samples_per_prompt == 4
    assert config.rl_config.clip_ratio == 0.2
    assert config.actor_config.lr == 1e-5
    assert config.model.hidden_size == 8


def test_load_override_chooses_another_member_of_a_group(folder: Path) -> None:
    assert load_config("run", ["model=large"], folder).model.hidden_size == 64


def test_load_converts_text_to_enums_and_whole_floats_to_integers(folder: Path) -> None:
    overrides = ["actor_config.lr_decay_style=cosine", "rl_config.kl_penalty=k1", "rl_config.mini_batch_size=4.0"]
    config = load_config("run", overrides, folder)
    assert config.actor_config.lr_decay_style is LrDecayStyle.COSINE
    assert config.rl_config.kl_penalty is KlPenalty.K1
    assert config.rl_config.mini_batch_size == 4


def test_load_resolves_references_to_keys_that_only_the_defaults_have(folder: Path) -> None:
    config = load_config("run", ["megatron_training.seq_length=${generate_config.max_model_len}"], folder)
    assert config.megatron_training.seq_length == 4096


def test_load_tells_which_keys_were_given(folder: Path) -> None:
    given = compose_config("run", ["rl_config.clip_ratio=0.3"], folder).given
    assert {"rl_config.epochs", "rl_config.entropy_coeff", "rl_config.clip_ratio", "model.hidden_size"} <= given
    assert "rl_config.clip_ratio_low" not in given


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "actor_config.clip_ratio_lo=0.1",
            "actor_config.clip_ratio_lo: unknown key, got 0.1 (number). Did you mean rl_config.clip_ratio_low?",
        ),
        (
            "rlconfig.epochs=2",
            "rlconfig: unknown key, got a section with epochs. Did you mean rl_config?",
        ),
        (
            "rl_config.learning=1",
            "rl_config.learning: unknown key, got 1 (integer). All keys are in docs/configuration.md.",
        ),
        (
            "rl_config.epochs='2'",
            "rl_config.epochs: must be an integer, got '2' (text). Write it without quotes, as 2.",
        ),
        (
            "rl_config.epochs=2.5",
            "rl_config.epochs: must be an integer, got 2.5 (number). Write a whole number such as 8.",
        ),
        ("rl_config.epochs=null", "rl_config.epochs: must be an integer, got null. Write a whole number such as 8."),
        (
            "megatron_training.bf16=1",
            "megatron_training.bf16: must be true or false, got 1 (integer). Write true or false without quotes.",
        ),
        (
            "rl_config.verifier_function=base_acc",
            "rl_config.verifier_function: must be a list, got 'base_acc' (text). Write [base_acc].",
        ),
        (
            "rl_config.verifier_weight=[1.0,heavy]",
            "rl_config.verifier_weight[1]: must be a number, got 'heavy' (text). Write a number such as 0.2.",
        ),
        (
            "actor_config.lr_decay_style=cosin",
            "actor_config.lr_decay_style: must be one of constant, linear, cosine, got 'cosin' (text). "
            "Did you mean 'cosine'?",
        ),
        (
            "rl_config.epochs=1,2",
            "rl_config.epochs: must be an integer, got '1,2' (text). Write a whole number such as 8.",
        ),
        (
            "generate_config.sampling_config=greedy",
            "generate_config.sampling_config: must be a section of keys, got 'greedy' (text). Write its keys below it.",
        ),
    ],
)
def test_compose_says_what_was_got_and_what_is_right(folder: Path, override: str, message: str) -> None:
    assert errors_of(folder, override) == [message]


def test_load_reports_every_problem_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("run", ["rl_config.epochs=two", "rl_config.epoch=2"], folder)
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rl_config.epochs", "override: must be key=value, got 'rl_config.epochs'."),
        (
            "rl_config.verifier_weight=[1.0",
            "override: cannot be read, got 'rl_config.verifier_weight=[1.0'. Close every",
        ),
        (
            "model=huge",
            "Available options in 'model': large qwen25_0_5b qwen25_32b qwen25_7b qwen3_4b small smollm2_135m.",
        ),
        ("rl_config.epochs=${rl_config.nothing}", "Interpolation key 'rl_config.nothing' not found"),
    ],
)
def test_compose_rejects_what_cannot_be_composed(folder: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config("run", [override], folder)
    assert part in str(raised.value)


def test_compose_lists_the_files_where_the_name_is_wrong(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file 'runn.yaml' in .*\. Did you mean 'run'\? There is: .*, run, "):
        compose_config("runn", (), folder)
    with pytest.raises(ConfigError, match=r"no file 'datasets/row.yaml' in .* 'datasets/rows'"):
        load_dataset_config("datasets/row", (), folder)
    with pytest.raises(ConfigError, match=r"--config-dir: no folder .*/nowhere\. Name the folder"):
        compose_config("run", (), folder / "nowhere")


def test_compose_tells_a_dataset_from_a_run(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'datasets/rows' is not the configuration of a run, but one of the folder"):
        compose_config("datasets/rows", config_dir=folder)
    with pytest.raises(ConfigError, match="'run' is the configuration of a run, not of a dataset: it has "):
        load_dataset_config("run", config_dir=folder)
    with pytest.raises(ConfigError, match=r"no file 'rows.yaml' in .*Did you mean 'datasets/rows'"):
        load_dataset_config("rows", config_dir=folder)


def test_compose_names_the_file_of_broken_yaml(folder: Path) -> None:
    (folder / "broken.yaml").write_text("rl_config: {epochs: 1\n")
    with pytest.raises(ConfigError, match=r"broken.yaml, line 2: is not valid YAML: expected ',' or '}', but got"):
        compose_config("broken", (), folder)


def test_compose_warns_of_a_mindspeed_key_that_does_nothing(folder: Path) -> None:
    (problem,) = compose_config("run", ["actor_config.micro_batch_size=1"], folder).problems
    assert problem.severity == "warning"
    assert problem.text.startswith(
        "actor_config.micro_batch_size: has no effect here, got 1 (integer). Samples are packed"
    )


def test_compose_rejects_a_mindspeed_setting_that_would_change_results(folder: Path) -> None:
    texts = errors_of(folder, "rl_config.gamma=0.9")
    assert texts == [
        "rl_config.gamma: this setting is not available here, got 0.9 (number). "
        "Tokens are not discounted, turns are by turn_reward_discount. Set 1.0 or remove it.",
    ]


def test_saved_configuration_loads_as_the_same(folder: Path, tmp_path: Path) -> None:
    config = load_config("run", ["rl_config.verifier_kwargs={base_acc: {strict: true}}", "model=large"], folder)
    save_resolved(config, tmp_path / "saved.yaml")
    assert load_config("saved", (), tmp_path) == config


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("{own.py:f: {limit: 1}}", {"reasoning_gym": {"min_score": 0.9}, "own.py:f": {"limit": 1}}),
        ("{own.py:f: {limit: 1}, reasoning_gym: null}", {"own.py:f": {"limit": 1}}),
        ("null", {}),
    ],
)
def test_own_file_takes_entries_out_of_an_inherited_mapping(folder: Path, own: str, expected: dict) -> None:
    base = "# @package _global_\nrl_config: {verifier_kwargs: {reasoning_gym: {min_score: 0.9}}}\n"
    (folder / "base/kwargs.yaml").write_text(base)
    (folder / "mine.yaml").write_text(f"defaults: [base/kwargs, _self_]\nrl_config: {{verifier_kwargs: {own}}}\n")
    assert load_config("mine", (), folder).rl_config.verifier_kwargs == expected


def test_dataset_file_takes_columns_out_of_an_inherited_mapping(folder: Path) -> None:
    (folder / "datasets/mine.yaml").write_text("defaults: [rows, _self_]\nmap_keys: {response: null, system: who}\n")
    assert load_dataset_config("datasets/mine", (), folder).map_keys == {"prompt": "question", "system": "who"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"own.py:f": {"limit": 150}}', {"own.py:f": {"limit": 150}}),
        ("{'own.py:f': {'limit': 150, 'say': 'a, b: {c}'}}", {"own.py:f": {"limit": 150, "say": "a, b: {c}"}}),
        ('{"my folder/(a)=b.py:f":{"n":1},base_acc:{}}', {"my folder/(a)=b.py:f": {"n": 1}, "base_acc": {}}),
        (r"{own.py\:f: {limit: 150}}", {"own.py:f": {"limit": 150}}),
        (r"""{f: {text: '{"a": 1, "b:c": [2]}'}}""", {"f": {"text": '{"a": 1, "b:c": [2]}'}}),
        ("{}", {}),
    ],
)
def test_override_takes_keys_in_quotes(folder: Path, value: str, expected: dict) -> None:
    assert load_config("run", [f"rl_config.verifier_kwargs={value}"], folder).rl_config.verifier_kwargs == expected


def test_dataset_configuration_takes_overrides_of_its_own_keys(folder: Path) -> None:
    config = load_dataset_config("datasets/rows", ["eval_size=5", "map_keys.system=instruction"], folder)
    assert config.input == "a.jsonl"
    assert config.eval_size == 5
    assert config.map_keys == {"prompt": "question", "response": "answer", "system": "instruction"}


def test_dataset_configuration_advises_on_mindspeed_keys(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "input: a\noutput_prefix: b\nhandler_name: Math17kAlpacaStyleInstructionHandler\nworkers: 8\n"
    (folder / "datasets" / "old.yaml").write_text(textwrap.dedent(text))
    assert load_dataset_config("datasets/old", (), folder).input == "a"
    assert [record.message.partition(":")[0] for record in caplog.records] == ["handler_name", "workers"]
