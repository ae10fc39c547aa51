"""Reading YAML: encodings, and faults with file, line and cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.config.load import compose_config, load_dataset_config
from rl.config.yaml_files import read_yaml
from rl.errors import ConfigError, ToolError
from rl.tools.entries import ToolEntry, read_entries

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_yaml_takes_each_encoding_with_a_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("name: Zürich 東京\nlr: 1e-6\nday: 2024-02-30\n".encode(encoding))
    assert read_yaml(path) == {"name": "Zürich 東京", "lr": 1e-6, "day": "2024-02-30"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xe9\n", "a.yaml, line 2: is not utf-8 text. Save the file as UTF-8."),
        ("a: 1\n".encode("utf-16-le"), "a.yaml, line 1: holds the character number 0, which YAML does not allow."),
        (
            b"a:\n\tb: 1\n",
            "a.yaml, line 2: is not valid YAML: found character '\\t' that cannot start any token. Indent",
        ),
        (
            b"a: 1\nb: c: d\n",
            "a.yaml, line 2: is not valid YAML: mapping values are not allowed here. Put text that has",
        ),
        (b"a: 1\nb: 2\na: 3\n", "a.yaml, line 3: is not valid YAML: found duplicate key a. Keep one of the two."),
        (b"a: 1\n---\nb: 1\n", "a.yaml, line 2: is not valid YAML: but found another document."),
        (b"a: [1, 2\n", "a.yaml, line 2: is not valid YAML: expected ',' or ']', but got '<stream end>'. Correct"),
        (
            b"a: " + b"[" * 100_000,
            "a.yaml, line 1: lists and mappings are nested more than 100 deep. Write it flatter.",
        ),
        (CHAIN.encode(), "a.yaml, line 101: lists and mappings are nested more than 100 deep."),
        (
            b"a: &a\n  - *a\n",
            "a.yaml, line 1: an alias (`*name`) is inside the value that it names. Write the value out.",
        ),
        (LAUGHS.encode(), "holds more than 100,000 values. Write less, or fewer aliases."),
        (b"a: !!int b\n", "a.yaml: holds a value that cannot be read: invalid literal for int()"),
        (b"a: " + b"9" * 5000, "a.yaml: holds a value that cannot be read: Exceeds the limit"),
        (b"a: !!python/name:os.system ''\n", "a.yaml, line 1: is not valid YAML: could not determine a constructor"),
        (b"- a\n", "a.yaml: must hold `key: value` lines, got a list. Write the name of its key before it."),
        (b"text\n", "a.yaml: must hold `key: value` lines, got 'text'."),
    ],
)
def test_read_yaml_names_file_line_and_cure(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(tmp_path / "a.yaml")
    assert f"{tmp_path}/{message}" in str(raised.value) or message in str(raised.value)
    assert str(tmp_path / "a.yaml") in str(raised.value)


def test_tools_and_configurations_have_the_same_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"tools: []\ntools: []\n")
    with pytest.raises(ToolError, match=r"tool_config_path: .*a\.yaml, line 2: is not valid YAML: found duplicate key"):
        read_entries(path)
    with pytest.raises(ConfigError, match=r"^.*a\.yaml, line 2: is not valid YAML: found duplicate key"):
        compose_config("a", (), tmp_path)
    path.write_bytes("tools: [{function: 'a.b:c'}]\n".encode("utf-16"))
    assert read_entries(path) == [ToolEntry(f"{path}: tools[1]", "function", "a.b:c", {}, None)]


def test_a_byte_order_mark_does_not_hide_the_package_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "b.yaml").write_bytes(b"\xef\xbb\xbf# @package _global_\nrl_config: {epochs: 3}\n")
    (tmp_path / "a.yaml").write_text("defaults: [base/b, _self_]\n")
    assert compose_config("a", (), tmp_path).config.rl_config.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [a]\n", "its `defaults` come back to a file that they began with."),
        ("defaults: {model: x}\n", "`defaults` must be a list of file names and of `group: name`, got {'model': 'x'}."),
        ("defaults: [5]\n", "`defaults` must be a list of file names and of `group: name`, got 5."),
        ("defaults: [{model: x, base: y}]\n", "`defaults` must be a list of file names and of `group: name`, got {'mo"),
        ("defaults: [nowhere]\n", "a.yaml: cannot be composed, got: In 'a': Could not load 'nowhere'."),
        ("# @package a b c\nx: 1\n", "a.yaml: cannot be read, got: Too many components in"),
        (
            "rl_config: {epochs: '${rl_config.clip_ratio}', clip_ratio: '${rl_config.epochs}'}\n",
            "Recursive interpolation",
        ),
        ("actor_config: {load: '${oc.env:NO_SUCH_VARIABLE}'}\n", "actor_config.load: a value refers to something that"),
        (
            "actor_config: {load: '${'}\n",
            r"a.yaml: actor_config.load: `${` begins a reference to another key. Close it",
        ),
    ],
)
def test_compose_explains_what_hydra_and_omegaconf_raise(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        compose_config("a", (), tmp_path)
    assert message in str(raised.value)


_PIECES = ["a: ", "b", "- ", "\n", "  ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!int ", "!!set ", "!!omap ", "1"]
_PIECES += [
    "defaults: [",
    "_self_",
    "model: ",
    "rl_config: ",
    "epochs: ",
    "# @package ",
    "\t",
    "'",
    '"',
    "? ",
    "| ",
    "5: ",
]
_PIECES += [
    "null",
    "${",
    "---",
    "!!timestamp ",
    "2024-13-45",
    ".nan",
    "true: ",
    "[a]: ",
    "/",
    "@",
    "???",
    "\ufeff",
    "é",
]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(
    st.one_of(
        st.binary(max_size=60), st.lists(st.sampled_from(_PIECES), max_size=14).map(lambda p: "".join(p).encode())
    )
)
def test_no_bytes_of_a_file_end_in_a_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    for read in (compose_config, load_dataset_config):
        try:
            read("a", (), tmp_path)
        except ConfigError as error:
            assert str(error)
