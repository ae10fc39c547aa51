"""The command line: text as typed, lists and mappings in either grammar, no traceback from any override."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rl.config.load import compose_config, load_dataset_config
from rl.config.problems import Severity
from rl.config.schema import Config
from rl.config.validate import find_problems
from rl.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "small.yaml").write_text("hidden_size: 8\n")
    text = "defaults: [{model: small}, _self_]\nrl_config: {verifier_kwargs: {base_acc: {strict: true}}}\n"
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "rows.yaml").write_text("map_keys: {prompt: question}\n")
    return tmp_path


def composed(folder: Path, *overrides: str) -> Config:
    result = compose_config("run", overrides, folder)
    assert [problem.text for problem in result.problems if problem.severity is Severity.ERROR] == []
    return result.config


@pytest.mark.parametrize(
    "path",
    [
        "mödel/東京",
        "a=b",
        "a (1)/b",
        "a~b",
        "a b  c",
        "a,b",
        "[a]",
        "{a: b}",
        "a:b",
        "it's",
        'say "x" twice',
        "a\\b",
        "a#b",
        "@a",
        "%a",
        "*a",
        "&a",
        "!a",
        "-a",
        "true",
        "2024-01-01",
        "s3://bucket/key?x=1&y=2",
        "$HOME/x",
    ],
)
def test_text_is_what_was_typed(folder: Path, path: str) -> None:
    config = composed(folder, f"actor_config.load={path}", f"rl_config.verifier_function=[{path.replace(',', '')}]")
    assert config.actor_config.load == path
    assert config.rl_config.verifier_function == [path.replace(",", "")]
    assert load_dataset_config("rows", [f"input={path}", f"map_keys.system={path}"], folder).map_keys["system"] == path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("", ""),
        ("'a b'", "a b"),
        ('"it\'s"', "it's"),
        (r"'it\'s'", "it's"),
        ("'null'", "null"),
        ("null", None),
        (" a ", "a"),
        (r"\${x}", "${x}"),
        ("${actor_config.load}/x", "here/x"),
        ("007", "007"),
        ("1e5", "1e5"),
    ],
)
def test_text_quotes_null_and_references(folder: Path, typed: str, meant: str | None) -> None:
    config = composed(folder, "actor_config.load=here", f"megatron_training.run_name={typed}")
    assert config.megatron_training.run_name == meant


def test_a_reference_reads_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data/x")
    assert composed(folder, "actor_config.load=${oc.env:PLACE}/m").actor_config.load == "/data/x/m"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("[a.py:f, 'b, c.py:f',\"d]\"]", ["a.py:f", "b, c.py:f", "d]"]),
        ("[]", []),
        ("[ my rewards (1).py:f ]", ["my rewards (1).py:f"]),
        ("[${actor_config.load}.py:f,b]", ["x.py:f", "b"]),
    ],
)
def test_a_list_of_text_is_cut_at_its_commas(folder: Path, typed: str, meant: list[str]) -> None:
    config = composed(folder, "actor_config.load=x", f"rl_config.verifier_function={typed}")
    assert config.rl_config.verifier_function == meant


@pytest.mark.parametrize(
    "override",
    [
        "={'my.py:f': {limit: 3}}",
        '={"my.py:f": {limit: 3}}',
        r"={my.py\:f:{limit:3}}",
        ".my.py:f={limit:3}",
        ".my.py:f.limit=3",
    ],
)
def test_a_mapping_takes_quoted_keys_and_names_of_functions(folder: Path, override: str) -> None:
    config = composed(folder, f"rl_config.verifier_kwargs{override}")
    assert config.rl_config.verifier_kwargs == {"base_acc": {"strict": True}, "my.py:f": {"limit": 3}}


def test_numbers_and_lists_of_numbers_keep_their_types(folder: Path) -> None:
    config = composed(folder, "actor_config.lr=1e-5", "rl_config.verifier_weight=[1, 0.5]", "++rl_config.epochs=2")
    assert (config.actor_config.lr, config.rl_config.verifier_weight, config.rl_config.epochs) == (1e-5, [1.0, 0.5], 2)


@pytest.mark.parametrize("override", ["~model", "model=null", "model="])
def test_a_group_is_left_out(folder: Path, override: str) -> None:
    assert composed(folder).model.hidden_size == 8
    assert composed(folder, override).model.hidden_size == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "override: '' cannot be a key, got '=3'."),
        ("rl_config..epochs=3", "override: 'rl_config..epochs' cannot be a key"),
        ("actor_config.load=a${b", r"actor_config.load: `${` begins a reference to another key. Close it"),
        ("~nothing", "cannot be composed, got: "),
        ("model=(", "Could not find 'model/('"),
        ("rl_config.verifier_weight=[1", "override: cannot be read, got 'rl_config.verifier_weight=[1'. Close every"),
        ("rl_config.verifier_kwargs={a: [", "override: cannot be read, got"),
    ],
)
def test_what_cannot_be_read_is_told_with_a_cure(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config("run", [override], folder)
    assert message in str(raised.value)


_KEYS = [
    "actor_config.load",
    "rl_config.verifier_function",
    "rl_config.verifier_kwargs",
    "rl_config.verifier_kwargs.a.x",
]
_KEYS += [
    "rl_config.epochs",
    "rl_config.epochs.x",
    "rl_config",
    "model",
    "~model",
    "+model",
    "model@x",
    "",
    "x",
    "hydra.x",
]
_VALUES = [
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "[" * 2000,
    "{" * 500,
    "${",
    "${rl_config}",
    "???",
    "null",
    "*a",
    "&a",
    "1,2",
]
_VALUES += ["!!python/object:x", "${rl_config.epochs}", "${now:%Y}", "${oc.decode:[}", "\0", "\ud800", "a\nb"]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(
    st.sampled_from(_KEYS),
    st.one_of(
        st.sampled_from(_VALUES),
        st.text(st.sampled_from(list("abc01.,:;=(){}[]~'\"\\ $\t/-+*?&!#@%|<>éß漢")), max_size=12),
    ),
)
@example("model", "nan")
@example("actor_config.load", "a" * 5000)
def test_no_override_ends_in_a_traceback(folder: Path, key: str, value: str) -> None:
    try:
        result = compose_config("run", [f"{key}={value}"], folder)
        find_problems(result.config, result.given)
    except ConfigError as error:
        assert str(error)
