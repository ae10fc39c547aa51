"""The command line: dispatch, exit codes, messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl.__main__ import COMMANDS, main
from rl.errors import TurnwiseError

ROOT = Path(__file__).resolve().parents[2]


def test_main_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_main_suggests_the_nearest_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "rl: unknown name 'trian'. Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code"), [(TurnwiseError("x: wrong, got y. Do z."), 2), (KeyboardInterrupt(), 130)]
)
def test_main_turns_exceptions_into_exit_codes(
    failure: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise failure

    monkeypatch.setitem(COMMANDS, "train", fail)
    assert main(["train"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_validate_shows_configuration_arithmetic_and_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["validate", "--config-name", "dapo_qwen25_7b_multi_turn", "rl_config.mini_batch_size=16"]) == 0
    shown = capsys.readouterr().out
    assert "  mini_batch_size: 16\n" in shown
    assert "7,615 M, tensor 2 x pipeline 1" in shown
    assert "dapo_qwen25_7b_multi_turn: The configuration is valid." in shown


def test_validate_lists_all_problems_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    overrides = ["rl_config.clip_ratio_lo=0.1", "rl_config.adv_estimator=grpo", "rl_config.verifier_function=[base_ac]"]
    assert main(["validate", overrides[0], "--config-name", "dapo_qwen25_7b_multi_turn", *overrides[1:]]) == 2
    shown = capsys.readouterr().out
    assert (
        "error rl_config.clip_ratio_lo: unknown key, got 0.1 (number). Did you mean rl_config.clip_ratio_low?" in shown
    )
    assert "error rl_config.adv_estimator: unknown name 'grpo'. Known: group_norm, " in shown
    assert "error rl_config.verifier_function: unknown name 'base_ac'. Did you mean 'base_acc'?" in shown
    assert "3 errors." in shown


def test_main_can_be_interrupted_as_a_background_job_of_a_script() -> None:
    script = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from rl.__main__ import COMMANDS, main\n"
        "COMMANDS['view'] = lambda argv: os.kill(os.getpid(), signal.SIGINT)\n"
        "print(main(['view']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("130\n", "Interrupted.\n")


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'hydra', 'rich'}"
    script = f"import sys; from rl.__main__ import main; main([]); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n")


def test_python_dash_m_shows_warnings_of_the_configuration() -> None:
    command = ["evaluate", "--config-name", "dapo_smollm2_135m_retool", "megatron_training.test_data_path=none.jsonl"]
    done = subprocess.run([sys.executable, "-m", "rl", *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "WARNING rl.command: megatron_training.test_data_path: got 'none.jsonl', taken over." in done.stderr
