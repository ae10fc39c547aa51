"""Training on what a run recorded repeats the run's updates."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from rl.config.schema import Config, KlPenalty, LrDecayStyle
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import read_tokens
from rl.observability.trajectories import read_records
from rl.rollout.replay import Replay, find_recorded_steps
from tests.recorded_run import Engine, make_config, sampling, train

UPDATE = ("actor/pg_loss", "actor/grad_norm", "actor/lr", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
"""Metrics that are equal if the update is."""
SETTINGS: list[dict[str, Any]] = [
    {},
    {
        "init_kl_coef": 0.1, "use_kl_in_reward": True, "kl_penalty": KlPenalty.K1, "mini_batch_size": 1, "epochs": 2,
        "filter_groups_enable": True, "token_level_loss": False,
    },
    {"init_kl_coef": 0.1, "kl_penalty": KlPenalty.K3, "mini_batch_size": 1},
]  # fmt: skip


def recorded(folder: Path, **settings: object) -> tuple[Config, RunDirectory, Engine]:
    config, engine = make_config(folder), Engine()
    for key, value in settings.items():
        setattr(config.rl_config, key, value)
    config.actor_config.lr_decay_style = LrDecayStyle.COSINE
    # the surplus of dynamic sampling begins after its first uninformative group
    num_epochs = 2 if config.rl_config.filter_groups_enable else 1
    config.megatron_training.train_iters, config.megatron_training.total_epochs = 10, num_epochs
    with sampling(config, engine) as rollouts:
        return config, train(config, rollouts), engine


def replayed(config: Config, source: Path, name: str, *, resume: Path | None = None) -> RunDirectory:
    config = deepcopy(config)
    config.megatron_training.run_name, config.megatron_training.replay = name, str(source)
    config.megatron_training.resume = str(resume) if resume else None
    return train(config, Replay(find_recorded_steps(source)))


def updates(run: RunDirectory) -> dict[int, dict[str, float]]:
    return {
        row["step"]: {n: v for n, v in row.items() if n in UPDATE or n.startswith("critic/")}
        for row in run.read_metrics()
    }


@pytest.mark.parametrize(
    "settings", SETTINGS, ids=["one update", "KL in the reward, two updates, two epochs", "KL in the loss"]
)
def test_replay_repeats_the_updates_of_the_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    config, run, _ = recorded(tmp_path, **settings)
    expected = updates(run)
    assert len(expected) >= 3 and len({row["actor/lr"] for row in expected.values()}) == len(expected)
    carried = sum(row.get("rollout/carried_groups", 0) for row in run.read_metrics())
    assert (carried > 0) == settings.get("filter_groups_enable", False)
    again = replayed(config, run.path, "again")
    assert updates(again).keys() == expected.keys()
    for step, row in updates(again).items():
        assert row == pytest.approx(expected[step], abs=1e-6), step
    assert [t.token_ids.tolist() for t in read_tokens(again, 1)] == [t.token_ids.tolist() for t in read_tokens(run, 1)]
    again_used, used = (read_records(directory.step_file(2)) for directory in (again, run))
    for name in ("reward", "advantage", "exclusion", "kl_penalty", "score"):
        assert [t[name] for t in again_used] == pytest.approx([t[name] for t in used]), name

    resumed = replayed(config, run.path, "resumed", resume=run.checkpoint(1))
    assert updates(resumed)[2] == pytest.approx(expected[2], abs=1e-6)
    alone = replayed(config, run.tokens_file(1), "alone")
    assert updates(alone) == {1: pytest.approx(expected[1], abs=1e-6)}
    assert alone.latest_checkpoint() == alone.checkpoint(1)


def test_tokens_that_cannot_be_recorded_are_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, _ = recorded(tmp_path)
    config.megatron_training.run_name = "full"
    monkeypatch.setattr(RunDirectory, "tokens", property(lambda self: self.path / "missing" / "folder"))
    with sampling(config, Engine()) as rollouts:
        full = train(config, rollouts)
    assert updates(full).keys() == updates(run).keys()
    assert all(full.step_file(step).is_file() for step in updates(full))
    warnings = [line for line in full.log_file.read_text().splitlines() if "tokens could not be recorded" in line]
    for name in ("step_000001.parquet", "step_000001.rank_0.parquet"):
        (warning,) = [line for line in warnings if name in line]
        assert "Make room, and put megatron_training.output_dir where all machines" in warning
        assert "record_tokens_every=0 records none" in warning


def test_recorded_tokens_are_those_the_engine_sampled(tmp_path: Path) -> None:
    _, run, engine = recorded(tmp_path)
    rows = [row for step in (1, 2) for row in read_tokens(run, step)]
    found = {tuple(row.token_ids[row.loss_mask > 0].tolist()): row for row in rows}
    assert len(rows) == 16
    for sampled, logprobs in engine.said[:16]:
        row = found[tuple(sampled)]
        assert row.rollout_logprobs[row.loss_mask > 0].tolist() == pytest.approx(logprobs, abs=1e-6)
        assert row.pieces[-1] == "<|im_end|>"
        assert row.pieces[0] == "<|im_start|>"
    texts = {t["id"]: t["turns"][0]["text"] for t in read_records(run.step_file(1))}
    for row in rows[:8]:
        sampled_text = "".join(row.pieces[row.prompt_length :])
        assert sampled_text.replace("\ufffd", "") == texts[row.trajectory_id].replace("\ufffd", "")
