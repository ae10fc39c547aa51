"""`rl play --human` as a real process with real tools."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rl.__main__ import main
from rl.chat.parsers import PARSERS
from rl.config.schema import Config
from rl.errors import ToolError
from rl.play import expand_calls
from rl.rollout.dialog import Dialog, load_dialog
from tests.tiny import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def dialog(tokenizer: Path) -> Dialog:
    config = Config()
    config.megatron_training.tokenizer_name_or_path = str(tokenizer)
    config.rl_config.multi_turn_enable = True
    config.rl_config.tool_config_path = str(ROOT / "configs/tools/calculator.yaml")
    return load_dialog(config)


def command(tokenizer: Path, tools: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "rl", "play", "--human", "--model", str(tokenizer), "--tool-config", tools, *more]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("No call.", "No call."),
        (
            "So:\n/call calculator 1 +\n 1\n",
            'So:\n<tool_call>\n{"name": "calculator", "arguments": {"expression": "1 +\\n 1"}}\n</tool_call>',
        ),
        (
            '/call calculator {"expression": "2"}\n/call other {}\n/call other',
            '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>\n'
            '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>',
        ),
        ("do not /call calculator 1", "do not /call calculator 1"),
    ],
)
def test_expand_calls_writes_what_the_parser_reads(typed: str, said: str, dialog: Dialog) -> None:
    assert expand_calls(typed, dialog) == said


def test_expand_calls_follows_the_format(dialog: Dialog) -> None:
    assert dialog.toolbox is not None
    parser = PARSERS["text_environment"].for_tools(dialog.toolbox.schemas)
    other = Dialog(dialog.renderer, dialog.toolbox, parser)
    assert expand_calls("I ask <x>\n/call calculator 2*3", other) == "I ask <x>\n<request><calculator>2*3<call>"


def test_expand_calls_names_the_nearest_tool(dialog: Dialog) -> None:
    with pytest.raises(ToolError, match=r"/call: unknown name 'calculater'\. Did you mean 'calculator'\?"):
        expand_calls("/call calculater 1", dialog)


def test_play_answers_questions_from_a_pipe(tokenizer: Path) -> None:
    typed = (
        "What is 17*23?\nI compute.\n/call calculater 1\n\n"  # asked for again
        "/call calculator 17*23\n/call nothing {}\n\nIt is 391.\n\n"
        "And then\udcff?\n<tool_call>\n{oops}\n</tool_call>\n"  # a byte that is no text
    )
    done = subprocess.run(
        command(tokenizer, "configs/tools/calculator.yaml"), input=typed, cwd=ROOT, capture_output=True, text=True,
        errors="surrogateescape", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "\x1b" not in shown
    expected = [
        "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>",  # of the prompt
        "[user]\nWhat is 17*23?\n",
        "/call: unknown name 'calculater'. Did you mean 'calculator'?",
        "[model, turn 1, ",
        "[call of calculator]\nexpression: 17*23\n[call of nothing]\n",
        "[calculator: ok, ",
        "391\n[nothing: unknown_tool, ",
        "[model, turn 2, ",
        "It is 391.<|im_end|>\nstopped: finished, ",
        "[user]\nAnd then\ufffd?\n[model, turn 1, ",
        "[call of a tool, malformed]\n\n{oops}\n",
        "[tool: parse_error, ",
    ]  # fmt: skip
    for text in expected:
        _, found, shown = shown.partition(text)
        assert found, (text, done.stdout)


class Terminal:
    """A session in its own terminal, with an embedded sandbox."""

    def __init__(self, arguments: list[str]) -> None:
        self._screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            arguments, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
            preexec_fn=lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR)),  # makes it the controlling terminal
        )  # fmt: skip
        os.close(theirs)
        self._shown = b""

    def wait_for(self, text: str, timeout_s: float = 120.0) -> str:
        """Read up to and including a text; return everything since the previous one."""
        deadline = time.monotonic() + timeout_s
        while text.encode() not in self._shown:
            ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"'{text}' is not shown, but {self._shown!r}")
            self._shown += os.read(self._screen, 65536)
        before, _, self._shown = self._shown.partition(text.encode())
        return before.decode()

    def interrupt(self) -> None:
        """Press Ctrl-C until it works: Python's `input` misses one that comes just before it waits for a key."""
        for _ in range(60):
            self.type("\x03")
            with suppress(TimeoutError):
                self.wait_for("stopped.", timeout_s=2.0)
                return
        raise TimeoutError("Ctrl-C is not answered")

    def terminate(self) -> int:
        """Send SIGTERM until it works, for the same reason; return the exit code."""
        for _ in range(60):
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(20.0)  # a second one would end it without its exit code
        raise TimeoutError("SIGTERM is not answered")

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(tokenizer: Path) -> Iterator[Terminal]:
    made = Terminal(command(tokenizer, "configs/tools/python_interpreter.yaml"))
    yield made
    made.close()


def test_play_stops_an_answer_and_continues(terminal: Terminal) -> None:
    terminal.wait_for("question> ")
    terminal.type("first\n/call python_interpreter x = 20\nprint(x)\n\n/call python_interpreter x + 2\n\n")
    assert "\x1b[1;34m[call of python_interpreter]\x1b[0m" in terminal.wait_for("\x1b[33m22\x1b[0m")
    terminal.wait_for("model> ")
    terminal.type("half a turn")
    terminal.wait_for("half a turn")  # else Ctrl-C discards what readline is about to read, and it waits for a key
    terminal.interrupt()
    terminal.wait_for("question> ")
    terminal.type("second\n/call python_interpreter x\n\n")
    terminal.wait_for("NameError")  # a question has an interpreter of its own
    terminal.wait_for("model> ")
    terminal.type("/call python_interpreter import time; time.sleep(1000)\n\n")
    terminal.wait_for("[call of python_interpreter]")
    terminal.interrupt()
    terminal.wait_for("question> ")
    assert terminal.terminate() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [
                *("--human", "--model", "TOKENIZER", "rl_config.agent_function=a.py:b"),
                *("rl_config.tool_config_path=null", "rl_config.multi_turn_enable=true"),
            ],
            "rl_config.agent_function: `rl play` talks",
        ),
        (["--human", "--model", "nowhere"], "--model: no folder 'nowhere'. Name a Hugging Face model folder"),
        (["--tool-config", "nowhere.yaml", "--human", "--model", "TOKENIZER"], "nowhere.yaml: cannot be read, No such"),
    ],
)
def test_play_reports_what_is_missing(
    arguments: list[str], message: str, tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(ROOT)
    given = [str(tokenizer) if argument == "TOKENIZER" else argument for argument in arguments]
    assert main(["play", *given]) == 2
    assert message in capsys.readouterr().err
