"""`rl score` on a recorded step: recorded and new means, changed scores, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.config.schema import Config
from rl.errors import DataError
from rl.observability.trajectories import from_record, to_record, write_records
from rl.score import main
from rl.types import Prompt, StopReason, Trajectory
from tests.unit.observability.examples import make_trajectory

REWARD = """
def by_column(trajectory):
    if trajectory.prompt.extra["level"] == 3:
        raise ValueError("level 3")
    return float(trajectory.prompt.extra["level"] + trajectory.response_length)
"""


def recorded(folder: Path, *trajectories: Trajectory) -> Path:
    path = folder / "step_000001.jsonl"
    write_records(path, [trajectories], {})
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    rows = [
        {"messages": [{"role": "user", "content": "2+2?"}], "ground_truth": "4", "data_source": "gcd", "level": level}
        for level in (1, 2, 3)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_reward.py").write_text(REWARD)
    made = Config()
    made.megatron_training.data_path = str(tmp_path / "train.jsonl")
    made.rl_config.verifier_function = [f"{tmp_path}/my_reward.py:by_column"]
    return made


def test_score_compares_with_the_recorded_scores(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 4 tokens of response each; recorded with score 5, as it is now, and with score 1
    same = make_trajectory(score=5.0, prompt_id="train-1")
    changed = make_trajectory(score=1.0, prompt_id="train-2@1", index=3)
    unseen = make_trajectory(score=None, prompt_id="train-1", stop_reason=StopReason.DEADLINE)
    path = recorded(tmp_path, same, changed, unseen)
    assert main(config, path, None) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(f"2 trajectories of {path} in ")
    assert "score 3.000 5.500" in lines
    assert lines[-1] == "train-2@1/3: 1.000 -> 6.000"


def test_score_names_what_a_reward_raises(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path, make_trajectory(score=1.0, prompt_id="train-3"))
    assert main(config, path, None) == 2
    assert "train-3/0: no score. " in (out := capsys.readouterr().out)
    assert "ValueError: level 3" in out


def test_score_ignores_a_row_with_another_question(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Path(config.megatron_training.data_path)  # preprocessed again since the run, in another order
    rows.write_text(rows.read_text().replace("2+2?", "3+3?").replace('"4"', '"6"'))
    config.rl_config.verifier_function = ["base_acc"]
    path = recorded(tmp_path, make_trajectory(score=1.0, prompt_id="train-1"))
    assert main(config, path, None) == 0
    assert "score 1.000 1.000" in " ".join(capsys.readouterr().out.split())


def test_score_without_scored_trajectories_is_an_error(config: Config, tmp_path: Path) -> None:
    path = recorded(tmp_path, make_trajectory(score=None, stop_reason=StopReason.ENGINE_FAILED))
    with pytest.raises(DataError, match="all trajectories have infrastructure failures"):
        main(config, path, None)
    with pytest.raises(DataError, match="--step: needs a run directory"):
        main(config, path, 3)


def test_from_record_restores_what_a_reward_reads() -> None:
    trajectory = make_trajectory()
    trajectory.turns[0].begins_in_thought = True
    record = json.loads(json.dumps(to_record(trajectory)))
    back = from_record(record)
    assert back.prompt == Prompt("train-1", trajectory.prompt.messages, "4", "gcd")
    assert back.turns == trajectory.turns
    assert (back.id, back.stop_reason, back.response_length, back.num_sampled) == ("train-1/0", "finished", 4, 3)
    assert (back.score, back.rewards) == (None, {})
