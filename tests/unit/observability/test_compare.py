from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml

from rl.__main__ import main
from rl.config.keys import default_mapping
from rl.config.schema import Config
from rl.errors import DataError
from rl.observability.comparison import choose_metrics, curve_of, differing_keys, read_settings
from rl.observability.final_values import Final, final_value
from rl.observability.trajectories import to_record
from tests.unit.observability.examples import make_trajectory

SCORE, ACCURACY = "critic/score/mean", "val-core/all/acc/mean@1"


def make_run(folder: Path, name: str, scores: list[float], *, seed: int = 1, lr: float = 1e-6, **training: Any) -> Path:
    run = folder / name
    (run / "trajectories").mkdir(parents=True)
    config = default_mapping(Config)
    config["megatron_training"] |= {"seed": seed, "run_name": name} | training
    config["actor_config"]["lr"] = lr
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"step": step, "time": 0.0, SCORE: score} for step, score in enumerate(scores, start=1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def add_evaluation(run: Path, accuracy: float, scores: dict[str, float], *, num_questions: int = 200) -> None:
    row = {
        "step": 1, ACCURACY: accuracy, "val-core/all/num_questions": num_questions,
        "val-core/all/acc/ci95_low": accuracy - 0.1, "val-core/all/acc/ci95_high": accuracy + 0.1,
    }  # fmt: skip
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    records = [to_record(make_trajectory(score=score, prompt_id=name)) for name, score in scores.items()]
    (run / "trajectories" / "eval_000001.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_runs_that_differ_in_seed_and_place_are_one_setting(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path, "slow-seed1", [0.0], seed=1),
        make_run(tmp_path, "fast-seed1", [0.0], seed=1, lr=1e-5),
        make_run(tmp_path, "slow-seed2", [0.0], seed=2, output_dir="elsewhere", trackers=[]),
    ]
    settings, notes = read_settings(paths)
    assert [(s.label, [run.name for run in s.runs]) for s in settings] == [
        ("lr=1e-06", ["slow-seed1", "slow-seed2"]),
        ("lr=1e-05", ["fast-seed1"]),
    ]
    assert differing_keys(settings) == {"actor_config.lr": ["1e-06", "1e-05"]}
    assert notes == []


def test_old_configuration_is_the_setting_of_a_new_one(tmp_path: Path) -> None:
    new, old = make_run(tmp_path, "new", [0.0], seed=1), make_run(tmp_path, "old", [0.0], seed=2)
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["megatron_training"]["prometheus_port"], config["megatron_training"]["trackers"]
    config["rl_config"] |= {"use_tensorboard": True, "use_wandb": False, "wandb_project": "", "wandb_exp_name": ""}
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (setting,), _ = read_settings([new, old])
    assert [run.name for run in setting.runs] == ["new", "old"]


def test_earlier_names_and_forms_are_the_setting_of_a_new_run(tmp_path: Path) -> None:
    new = make_run(tmp_path, "new", [0.0], seed=1, eval_data_path={"e": "/d/e.parquet"})
    old = make_run(tmp_path, "old", [0.0], seed=2)
    config = yaml.safe_load((old / "config.yaml").read_text())
    for key in ("eval_data_path", "eval_interval", "eval_before_train", "eval_after_train"):
        del config["megatron_training"][key]
    config["megatron_training"] |= {"test_data_path": "/d/e.parquet", "test_freq": 5, "test_before_train": False}
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (setting,), _ = read_settings([new, old])
    assert [run.name for run in setting.runs] == ["new", "old"]


def test_resumed_run_stands_for_the_one_it_continues(tmp_path: Path) -> None:
    first = make_run(tmp_path, "first", [0.0, 0.5])
    second = make_run(tmp_path, "second", [0.0, 0.5, 1.0], resume=str(first / "checkpoints" / "step_000002"))
    (setting,), notes = read_settings([first, second, second])
    assert [run.name for run in setting.runs] == ["second"]
    assert notes == ["first: left out, since second resumes it and has its steps."]


def test_notes_tell_of_equal_seeds_and_unequal_lengths(tmp_path: Path) -> None:
    _, notes = read_settings([make_run(tmp_path, "a-1", [0.0]), make_run(tmp_path, "a-2", [0.0, 0.1])])
    assert notes == [
        "a: its runs end after 1, 2 steps; each final value is that of the run's own end.",
        "a: some of its runs have the same seed, so its interval over runs is too narrow.",
    ]


def test_curve_is_mean_and_range_where_all_runs_have_a_value(tmp_path: Path) -> None:
    (setting,), _ = read_settings(
        [make_run(tmp_path, "a", [0.0, 0.5, 0.75], seed=1), make_run(tmp_path, "b", [0.5, 0.0], seed=2)]
    )
    curve = curve_of(setting, SCORE)
    assert (curve.steps, curve.mean, curve.low, curve.high) == ([1, 2], [0.25, 0.25], [0.0, 0.0], [0.5, 0.5])


def test_accuracy_of_one_run_has_a_band_over_questions(tmp_path: Path) -> None:
    add_evaluation(run := make_run(tmp_path, "one", [0.5]), 0.5, {"q-1": 1.0})
    (setting,), _ = read_settings([run])
    curve = curve_of(setting, ACCURACY)
    assert (curve.steps, curve.mean, curve.low, curve.high) == ([1], [0.5], [0.4], [0.6])
    assert curve_of(setting, SCORE).low == []
    assert curve_of(setting, "absent").steps == []


def test_final_value_of_runs_has_a_t_interval(tmp_path: Path) -> None:
    """Final values 1, 2, 3: s = 1, t(2) = 4.302653, half = 4.302653 / sqrt(3) = 2.484138."""
    (setting,), _ = read_settings([make_run(tmp_path, str(i), [float(i)], seed=i) for i in (1, 2, 3)])
    final = final_value(setting, SCORE)
    assert final == Final(2.0, pytest.approx(-0.484138, abs=1e-6), pytest.approx(4.484138, abs=1e-6), "3 runs")


def test_final_value_of_one_run_has_the_noise_of_its_last_steps(tmp_path: Path) -> None:
    """Eleven steps, of which the last ten are five times 0 and five times 1: s = sqrt(2.5 / 9), t(9) = 2.262157."""
    (setting,), _ = read_settings([make_run(tmp_path, "one", [9.0] + [0.0, 1.0] * 5)])
    final = final_value(setting, SCORE)
    assert final == Final(0.5, pytest.approx(0.122974, abs=1e-6), pytest.approx(0.877026, abs=1e-6), "10 steps")


def test_final_accuracy_of_one_run_has_the_interval_over_questions(tmp_path: Path) -> None:
    add_evaluation(run := make_run(tmp_path, "one", [0.5]), 0.5, {"q-1": 1.0})
    (setting,), _ = read_settings([run])
    assert final_value(setting, ACCURACY) == Final(0.5, 0.4, 0.6, "200 questions")
    assert final_value(setting, "absent") is None


def test_final_accuracy_of_runs_stays_between_0_and_1(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, str(seed), [0.5], seed=seed) for seed in (1, 2)]
    for run, accuracy in zip(runs, (0.4, 0.9), strict=True):
        add_evaluation(run, accuracy, {"q-1": 1.0})
    (setting,), _ = read_settings(runs)
    assert final_value(setting, ACCURACY) == Final(0.65, 0.0, 1.0, "2 runs")


def test_metrics_are_chosen_by_name_pattern_or_default(tmp_path: Path) -> None:
    add_evaluation(run := make_run(tmp_path, "one", [0.5]), 0.5, {"q-1": 1.0})
    settings, _ = read_settings([run])
    assert choose_metrics(settings, []) == [ACCURACY, SCORE]
    assert choose_metrics(settings, ["*/ci95_*", SCORE]) == [
        "val-core/all/acc/ci95_high", "val-core/all/acc/ci95_low", SCORE,
    ]  # fmt: skip
    with pytest.raises(
        DataError, match=r"--metrics: no run has 'critic/score/mea'\. Did you mean 'critic/score/mean'\?"
    ):
        choose_metrics(settings, ["critic/score/mea"])


def test_compare_prints_tables_and_pairs_the_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = make_run(tmp_path, "slow", [0.25]), make_run(tmp_path, "fast", [0.75], lr=1e-5)
    add_evaluation(slow, 0.25, {"q-1": 1.0, "q-2": 0.0, "q-3": 0.0, "q-4": 0.0})
    add_evaluation(fast, 0.75, {"q-1": 1.0, "q-2": 1.0, "q-3": 1.0, "q-4": 0.0})
    assert main(["compare", str(slow), str(fast)]) == 0
    lines = [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert "slow slow 1 1 - unfinished" in lines
    assert "actor_config.lr 1e-06 1e-05" in lines
    assert "critic/score/mean 0.25 0.75 -" in lines
    (paired,) = [line for line in lines if line.startswith("fast against slow")]
    assert "+0.500" in paired
    assert paired.endswith("2 0 0.5 4")


def test_evaluations_of_other_questions_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path, "a", [0.25]), make_run(tmp_path, "b", [0.75], lr=1e-5)
    add_evaluation(a, 0.25, {"q-1": 1.0})
    add_evaluation(b, 0.75, {"other-1": 1.0})
    assert main(["compare", str(a), str(b)]) == 0
    assert "b against a: not compared question by question. paired comparison: both" in capsys.readouterr().out


def test_picture_and_page_have_every_metric(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    runs = [make_run(tmp_path, f"a{seed}", [0.5] * 30, seed=seed) for seed in (1, 2)]
    runs.append(make_run(tmp_path, "b", [1.0, float("nan")], lr=1e-5, tokenizer_name_or_path=hostile))
    picture, page = tmp_path / "curves.png", tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "-o", str(picture), "--html", str(page)]) == 0
    assert matplotlib.image.imread(picture).shape[0] > 300
    text = page.read_text()
    assert hostile not in text
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/[\w/]+", "", text)
    packed = re.search(r'id="chunk:comparison">([^<]*)<', text)
    assert packed is not None
    content = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    (chart,) = content["charts"]
    assert chart["x"] == list(range(1, 31))
    assert chart["lines"][0]["low"] == chart["lines"][0]["high"] == [pytest.approx(0.5)] * 30
    assert chart["lines"][1]["values"] == [1.0] + [None] * 29
    assert hostile in json.dumps(content["tables"])


def test_run_without_metrics_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "empty", [])
    with pytest.raises(DataError, match=r"no metrics yet\. Wait for the first step"):
        read_settings([run])


@pytest.mark.parametrize(
    ("name", "message"), [("x.foo", r"must end in \.png, .* got 'x\.foo'"), ("no/x.png", "folder")]
)
def test_output_that_cannot_be_written_is_refused_first(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "one", [0.5])
    assert main(["compare", str(run), "-o", str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert shown.out == ""
