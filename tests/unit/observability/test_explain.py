"""`rl explain` and `rl view --tokens` on a run with a group that teaches nothing and a failed reward."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rl.batches import Exclusion
from rl.errors import DataError
from rl.observability import explain_view, viewer
from rl.observability.explain import explain_step
from rl.observability.run_directory import RunDirectory
from rl.observability.terminal import visible
from rl.observability.token_records import read_tokens
from rl.observability.token_view import CHOICES, print_tokens
from tests.recorded_run import Engine, make_config, sampling, train
from tests.unit.observability.test_token_records import make_recording


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """In step 4 all trajectories of p-3 score 0, and p-2/0 has no score."""
    config = make_config(tmp_path_factory.mktemp("explain"))
    config.rl_config.mini_batch_size, config.rl_config.epochs, config.rl_config.init_kl_coef = 1, 2, 0.1
    config.megatron_training.train_iters, config.megatron_training.record_tokens_every = 4, 2
    with sampling(config, Engine()) as rollouts:
        return train(config, rollouts)


def output(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert explain_view.main(argv) == 0
    return capsys.readouterr().out


def test_explain_says_which_groups_are_left_out_and_why(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    text = output([str(run.path)], capsys)
    assert "step 4" in text
    assert "prompts       1 of 2 trained on" in text
    assert "3 of 8 trained on; left out: 4 zero_advantage, 1 no_score" in text
    assert "p-3  left out: 4 with the same reward, 0: nothing to learn from" in text
    assert "p-2  trained on 3 of 4; left out: 1 without a score" in text
    assert "length: boom" in text
    assert not re.search(r"score +reward", text)  # equal, so not shown
    assert re.search(r"advantage > 0 \d+ tokens moved \+0\.\d+ nats on average", text)


def test_explanation_agrees_with_the_records_and_the_tokens(run: RunDirectory) -> None:
    story = explain_step(run, 4)
    rows = {row.trajectory_id: row for row in read_tokens(run, 4)}
    by_id = {t.id: t for prompt in story.prompts for t in prompt.trajectories}
    assert by_id["p-2/0"].exclusion is Exclusion.NO_SCORE and by_id["p-2/0"].advantage is None
    assert by_id["p-3/1"].exclusion is Exclusion.ZERO_ADVANTAGE and by_id["p-3/1"].update is None
    for name, one in by_id.items():
        if one.exclusion is not None:
            continue
        row, update = rows[name], one.update
        assert row.trained is not None and row.change is not None and update is not None
        mask = row.loss_mask > 0
        assert row.trained.advantages[mask] == pytest.approx(one.advantage)
        assert update.ratio_min == row.trained.ratios[mask].min() != 1.0  # the second epoch
        assert update.mean_move == pytest.approx(row.change[mask].mean())
        assert update.weight_mean == 1.0
        assert row.trained.ref_logprobs is not None
        assert update.reference_kl == pytest.approx((row.trained.old_logprobs - row.trained.ref_logprobs)[mask].mean())
    moves = np.concatenate([row.change[row.loss_mask > 0] for row in rows.values() if row.change is not None])
    assert [token.move for token in story.tokens_up[:1]] == [moves.max()]
    assert [token.move for token in story.tokens_down[:1]] == [moves.min()]
    first = story.tokens_up[0]
    pieces = rows[first.trajectory_id].pieces
    assert first.piece == pieces[first.position]
    assert first.after == "".join(pieces[first.position + 1 : first.position + 11])
    assert story.reinforced is not None and story.reinforced.mean_move > 0
    assert story.discouraged is not None and story.discouraged.mean_move < 0


def test_explain_as_json_and_of_one_prompt(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    story = json.loads(output([str(run.path), "--step", "4", "--prompt", "p-2", "--json"], capsys))
    assert [prompt["id"] for prompt in story["prompts"]] == ["p-2"]
    assert [t["exclusion"] for t in story["prompts"][0]["trajectories"]] == ["no_score", None, None, None]
    assert story["metrics"]["actor/grad_norm"] > 0
    assert story["exclusions"] == {"no_score": 1}
    assert {token["trajectory_id"] for token in story["tokens_up"]} <= {"p-2/1", "p-2/2", "p-2/3"}


def test_explain_without_recorded_tokens_says_what_is_missing(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(output([str(run.path), "--step", "3"], capsys).split())
    assert "are not recorded, so ratios, clipping and moves are not known. Recorded steps: 1, 2, 4;" in text
    assert "trained on 4 of 4" in text


def test_explain_names_what_it_cannot_find(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--step: no trajectories of kind 'step', got 9\. Available: 1, 2, 3, 4"):
        explain_view.main([str(run.path), "--step", "9"])
    with pytest.raises(DataError, match=r"--prompt: no prompt 'p-9' in step 4\. Available: p-3, p-2\."):
        explain_view.main([str(run.path), "--prompt", "p-9"])
    old = RunDirectory(tmp_path)
    old.trajectories.mkdir()
    records = [json.loads(line) for line in run.step_file(4).read_text().splitlines()]
    lines = [json.dumps({k: v for k, v in record.items() if k != "exclusion"}) for record in records]
    old.step_file(4).write_text("\n".join(lines))
    with pytest.raises(DataError, match="an older version wrote it, without advantages and reasons"):
        explain_step(old, 4)


@pytest.mark.parametrize("choice", CHOICES)
def test_view_shows_tokens_by_every_measure(run: RunDirectory, choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert viewer.main([str(run.path), "--tokens", choice, "--id", "p-2/3"]) == 0
    text = capsys.readouterr().out
    assert "step 4  p-2/3" in text  # the last recorded step
    assert "<|im_start|>" in text


def test_docs_show_how_to_read_tokens(run: RunDirectory) -> None:
    page = (Path(__file__).parents[3] / "docs/explain.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    moves = names["mean_moves"](run.path, 4)
    updates = {t.id: t.update for prompt in explain_step(run, 4).prompts for t in prompt.trajectories if t.update}
    assert moves == {name: pytest.approx(update.mean_move) for name, update in updates.items()}
    assert len(moves) == 3


def test_view_of_tokens_colors_authors_and_values_with_a_legend(tmp_path: Path) -> None:
    first, second = read_tokens(make_recording(tmp_path), 5)
    texts = {}
    for choice in ("author", "moved"):
        out = io.StringIO()
        print_tokens([first], Console(file=out, force_terminal=True, color_system="truecolor", width=100), choice)
        texts[choice] = out.getvalue()
    assert "[prompt, tokens 0 to 2]" in texts["author"] and "[tool, tokens 5 to 5]" in texts["author"]
    assert "\x1b[36;48;2;" in texts["author"] or "\x1b[36;" in texts["author"]  # the prompt in cyan
    assert "\x1b[32;" in texts["author"] and "\x1b[33;" in texts["author"]  # the model in green, the tool in yellow
    # Token 6 moved most, by -0.25: full blue. Token 4 moved by +0.125: half way from gray to orange.
    assert "48;2;38;100;190m<2>" in texts["moved"]
    assert "48;2;136;76;39m<5>" in texts["moved"] or "48;2;136;76;38m<5>" in texts["moved"]
    assert " -0.25 " in texts["moved"] and "log-prob after the update minus before" in texts["moved"]
    with pytest.raises(DataError, match="the loss has no KL term"):
        print_tokens([first], Console(file=io.StringIO()), "reference")
    with pytest.raises(DataError, match="train-2/0 was not trained on, so there is no value"):
        print_tokens([second], Console(file=io.StringIO()), "advantage")


def test_view_of_tokens_of_an_evaluation_is_refused(run: RunDirectory) -> None:
    with pytest.raises(DataError, match="the tokens of evaluations are not recorded"):
        viewer.main([str(run.path), "--tokens", "--eval"])


def test_escape_codes_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (first, _) = read_tokens(make_recording(tmp_path), 5)
    evil = replace(first, pieces=["\x1b]0;title\x07", "a\r", "\x9b31m", "[bold]", "\u202e", "\n", "\t"])
    for choice in (choice for choice in CHOICES if choice != "reference"):
        out = io.StringIO()
        print_tokens([evil], Console(file=out, width=200), choice)
        assert not set(out.getvalue()) & {"\x1b", "\x07", "\r", "\x9b", "\u202e"}
        assert "␛]0;title␇" in out.getvalue()
        assert "[bold]" in out.getvalue()
    assert visible("a\x1b[31m\nb\tc\x7f\ud800") == "a␛[31m\nb\tc␡␦"
