from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.config.load import load_dataset_config
from rl.config.schema import DatasetConfig
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.errors import ConfigError, DataError

DAPO_ROW = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "What is 6 * 7?"}],
    "reward_model": {"ground_truth": "42", "style": "rule"},
    "extra_info": {"index": "a1"},
}


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def config_of(tmp_path: Path, **keys: object) -> DatasetConfig:
    return DatasetConfig(**{"input": str(tmp_path / "raw.jsonl"), "output_prefix": str(tmp_path / "out/rows")} | keys)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
@pytest.mark.parametrize("response", ["reward_model.ground_truth", "reward_model"])
def test_preprocess_reads_dapo_math_from_each_format(tmp_path: Path, suffix: str, response: str):
    source = write(tmp_path / f"raw{suffix}", [DAPO_ROW, DAPO_ROW])
    config = config_of(
        tmp_path,
        input=str(source),
        map_keys={"prompt": "prompt", "query": "", "response": response, "system": ""},
        dataset_additional_keys=["labels", "extra_info"],
        prompt_type="qwen_retool",
    )
    path = preprocess(config)
    assert path == tmp_path / "out/rows.parquet"
    assert pq.read_schema(path).metadata == {b"prompt_type": b"qwen_retool"}
    first, second = load_prompts(path, ["labels", "extra_info"])
    assert first.messages == [{"role": "user", "content": "What is 6 * 7?"}]
    assert (first.ground_truth, first.data_source, first.extra) == ("42", "math_dapo", {"extra_info": {"index": "a1"}})
    assert (first.id, second.id) == ("rows-1", "rows-2")
    assert sorted(p.name for p in path.parent.iterdir()) == ["rows.parquet"]


def test_preprocess_joins_system_prompt_and_query(tmp_path: Path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": 3, "system": "Be exact."},
        {"instruction": "Add 2 and 2.", "input": None, "output": 4, "system": ""},
    ]
    write(tmp_path / "raw.jsonl", rows)
    keys = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    first, second = load_prompts(preprocess(config_of(tmp_path, map_keys=keys)))
    assert first.messages == [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Add.\n1 2"}]
    assert second.messages == [{"role": "user", "content": "Add 2 and 2."}]
    own, given = load_prompts(preprocess(config_of(tmp_path, map_keys=keys, system_prompt="Count.")))
    assert [own.messages[0]["content"], given.messages[0]["content"]] == ["Be exact.", "Count."]
    assert (first.ground_truth, first.data_source) == ("3", "raw")


def test_preprocess_skips_duplicate_rows_if_configured(tmp_path: Path):
    rows = [{"prompt": "q", "response": answer} for answer in ("1", "2", "1")]
    write(tmp_path / "raw.jsonl", rows)
    for drop, expected in ((False, ["1", "2", "1"]), (True, ["1", "2"])):
        prompts = load_prompts(preprocess(config_of(tmp_path, drop_duplicates=drop)))
        assert [prompt.ground_truth for prompt in prompts] == expected


def test_preprocess_holds_out_rows_by_seed(tmp_path: Path):
    write(tmp_path / "raw.jsonl", [{"prompt": f"q{i}", "response": str(i)} for i in range(20)])
    truths = []
    for seed in (1, 1, 2):
        path = preprocess(config_of(tmp_path, eval_size=5, seed=seed))
        split_off = [prompt.ground_truth for prompt in load_prompts(path.with_name("rows_eval.parquet"))]
        kept = [prompt.ground_truth for prompt in load_prompts(path)]
        assert sorted(split_off + kept, key=int) == [str(i) for i in range(20)]
        truths.append(split_off)
    assert len(truths[0]) == 5
    assert truths[0] == truths[1] != truths[2]


def test_preprocess_reads_the_files_of_a_folder_in_order(tmp_path: Path):
    folder = tmp_path / "raw"
    folder.mkdir()
    write(folder / "b.jsonl", [{"prompt": "two", "response": "2"}])
    write(folder / "a.parquet", [{"prompt": "one", "response": "1"}])
    (folder / "README.md").write_text("no data")
    prompts = load_prompts(preprocess(config_of(tmp_path, input=str(folder))))
    assert [prompt.ground_truth for prompt in prompts] == ["1", "2"]
    assert prompts[0].data_source == "raw"


@pytest.mark.parametrize(
    ("row", "keys", "reason"),
    [
        (
            {"response": "4"},
            {},
            "no column with the prompt, got response. Usual names are messages, prompt, question, ",
        ),
        ({"prompt": "q", "response": None}, {}, "no value for 'response'"),
        ({"prompt": "q", "response": {"style": "rule"}}, {}, "a record without 'ground_truth', got fields style"),
        ({"prompt": 4, "response": "4"}, {}, "must be text or messages, got 4"),
        ({"prompt": [{"role": "x", "content": "q"}], "response": "4"}, {}, "got 'x'"),
        ({"prompt": "q", "response": "4"}, {"dataset_additional_keys": ["level"]}, "no value for 'level'"),
    ],
)
def test_preprocess_names_the_row_and_the_reason(tmp_path: Path, row: dict, keys: dict, reason: str):
    write(tmp_path / "raw.jsonl", [{"prompt": "q", "response": "4", "level": 1}, row])
    with pytest.raises(DataError) as caught:
        preprocess(config_of(tmp_path, **keys))
    assert f"{tmp_path / 'raw.jsonl'}, row 2: " in str(caught.value)
    assert reason in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "error", "reason"),
    [
        ({"input": ""}, ConfigError, "input: must not be empty"),
        ({"input": "nowhere.jsonl"}, DataError, "input: no file or folder 'nowhere.jsonl'."),
        (
            {"output_prefix": "/dev/null/rows"},
            ConfigError,
            r"output_prefix: cannot write /dev/null/rows.parquet \(",
        ),
        ({"prompt_type": "qwen_retol"}, ConfigError, "Did you mean 'qwen_retool'"),
        ({"map_keys": {"promt": "q"}}, ConfigError, "Did you mean 'prompt'"),
        ({"map_keys": {"prompt": ""}}, ConfigError, "map_keys.prompt: must not be empty"),
        ({"answer_pattern": "####"}, ConfigError, "one group, got '####'"),
        ({"answer_pattern": "(a"}, ConfigError, "is not a regular expression: missing"),
        ({"answer_pattern": "#### (.*)"}, DataError, "row 1: the answer does not match answer_pattern"),
        ({"eval_size": 1}, DataError, "eval_size: must be less than the 1 rows"),
        ({"dataset_additional_keys": ["mixed"]}, DataError, "must have one type in all rows"),
    ],
)
def test_preprocess_rejects_impossible_settings(tmp_path: Path, keys: dict, error: type[Exception], reason: str):
    rows = [{"prompt": "q", "response": "4", "mixed": 1}, {"prompt": "q", "response": "4", "mixed": {"a": "b"}}]
    write(tmp_path / "raw.jsonl", rows[: 2 if "dataset_additional_keys" in keys else 1])
    with pytest.raises(error, match=reason):
        preprocess(config_of(tmp_path, **keys))


@pytest.mark.parametrize("name", ["math_17k", "math_17k_retool", "deepscaler"])
def test_preprocess_accepts_the_shipped_configurations(tmp_path: Path, name: str):
    config = load_dataset_config(f"datasets/{name}")
    row = DAPO_ROW if name.startswith("math") else {"problem": "What is 6 * 7?", "answer": "42"}
    config.input = str(write(tmp_path / f"raw{Path(config.input).suffix}", [row]))
    config.output_prefix = str(tmp_path / "rows")
    (prompt,) = load_prompts(preprocess(config))
    assert (prompt.ground_truth, prompt.messages[0]["content"]) == ("42", "What is 6 * 7?")
