"""`rl play`: questions in the terminal, answered by a model, or by a person in its place, through the agent loop.

Each question is a separate trajectory, as in a rollout; nothing is trained.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from rich.text import Text

from rl.chat.parsers.plain_text import one_text_argument
from rl.cluster.embedded_services import embedded_services
from rl.cluster.endings import ignore_interrupts
from rl.config.device import runs_on_cuda
from rl.config.schema import Config
from rl.errors import ConfigError, DataError, ModelError, ToolError, unknown_name
from rl.inference.environment import engine_environment
from rl.inference.fake import FakeEngine
from rl.interfaces import Engine
from rl.observability.log import console
from rl.observability.trajectories import turn_record
from rl.observability.viewer import ERROR_STYLE, print_call, print_generation, print_message, print_result
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import Dialog, load_dialog
from rl.services.owned_folder import owned_folder
from rl.tools.registry import load_toolbox
from rl.types import Prompt, Sampling, StopReason, ToolCall, Turn

logger = logging.getLogger(__name__)

_SERVICE_TIMEOUT_S = 15.0
_QUIT = "/quit"
_HELP = f"Ask a question. Ctrl-C stops an answer, Ctrl-D or {_QUIT} ends the session."
_HELP_BY_HAND = """
You write the model's turns. An empty line ends a turn.
`/call NAME ARGUMENTS` writes a call. Arguments are a JSON object, or plain text for a tool with one text argument."""
_CALL = re.compile(r"^/call[ \t]+(\S+)\s?", re.MULTILINE)


class _SessionEndedError(Exception):
    """The user ended the session during a turn."""


def main(config: Config, *, by_hand: bool) -> None:
    """Answer questions from standard input, one per line.

    Args:
        config: Reads `rl_config` (tools and call format), `actor_config.load` (the model) and
            `generate_config.eval_sampling_config`.
        by_hand: Read the model's turns from the terminal; then only the tokenizer of the model is needed.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    folder = Path(config.megatron_training.tokenizer_name_or_path or config.actor_config.load)
    if not folder.is_dir():
        raise ModelError(
            f"--model: no folder '{folder}'. Name a Hugging Face model folder{', for its tokenizer' * by_hand}; "
            "`python tools/fetch_model.py` fetches a small one."
        )
    if config.rl_config.agent_function is not None:
        raise ConfigError(
            f"rl_config.agent_function: `rl play` talks to the model itself, got '{config.rl_config.agent_function}'. "
            "Set it to null, or run `rl evaluate`."
        )
    with ExitStack() as stack:
        stack.enter_context(_exit_on_signals())
        runner = stack.enter_context(asyncio.Runner())
        if config.rl_config.multi_turn_enable:
            runner.run(_check_tools(Path(config.rl_config.tool_config_path or "")))
        overrides = stack.enter_context(embedded_services(config))
        dialog = load_dialog(config, tool_overrides=overrides)
        if (toolbox := dialog.toolbox) is not None:
            stack.callback(lambda: runner.run(toolbox.close()))
        engine = _human_engine(dialog) if by_hand else _start_engine(config, dialog, runner, stack)
        stack.callback(ignore_interrupts)  # runs before the clean-up, which has its own deadlines
        _print_introduction(dialog, by_hand=by_hand)
        _answer_questions(_Player(config, dialog, engine, by_hand=by_hand), runner)


class _Player:
    """Runs one trajectory per question and prints its turns."""

    def __init__(self, config: Config, dialog: Dialog, engine: Engine, *, by_hand: bool) -> None:
        self._loop = AgentLoop(engine, dialog.renderer, dialog.toolbox, dialog.parser, config, self._show)
        self._by_hand = by_hand
        self._num_questions = self._num_turns = 0
        sampling, generate = config.generate_config.eval_sampling_config, config.generate_config
        self._sampling = Sampling(
            sampling.temperature, generate.sampling_config.max_tokens, top_p=sampling.top_p, top_k=sampling.top_k
        )

    async def answer(self, question: str) -> StopReason:
        """Run the trajectory for a question."""
        self._num_questions += 1
        self._num_turns = 0
        prompt = Prompt(f"play-{self._num_questions}", [{"role": "user", "content": question}], "", "play")
        waiting: AbstractContextManager[Any] = nullcontext() if self._by_hand else console().status("waiting")
        with waiting:
            trajectory = await self._loop.run(prompt, 0, self._sampling)
        length = sum(len(sequence.token_ids) for sequence in trajectory.sequences)
        console().print(Text(f"stopped: {trajectory.stop_reason}, {length} tokens, {trajectory.wall_s:.2f} s", "bold"))
        return trajectory.stop_reason

    def _show(self, turn: Turn) -> None:
        record = turn_record(turn)
        if turn.results or turn.messages:
            for result in record["results"]:
                print_result(console(), result)
            for message in turn.messages:
                print_message(console(), message["role"], message["content"])
            return
        self._num_turns += 1
        print_generation(console(), record, self._num_turns)
        for call in record["calls"]:
            print_call(console(), call)


def _answer_questions(player: _Player, runner: asyncio.Runner) -> None:
    """Answer questions until the input ends. Ctrl-C stops an answer; if input is a pipe, it ends the session."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives `input` a history and the arrow keys
    while True:
        try:
            question = _read_line("question> ")
            if question is None or question.strip() == _QUIT:
                return
            if not question.strip():
                continue
            if not sys.stdin.isatty():
                print_message(console(), "user", question)
            runner.run(player.answer(question))
        except _SessionEndedError:
            return
        except (KeyboardInterrupt, asyncio.CancelledError):
            if not sys.stdin.isatty():
                raise KeyboardInterrupt from None
            console().print(Text(f"\nstopped. Ctrl-D or {_QUIT} ends the session.", "bold"))


def _read_line(prompt: str) -> str | None:
    """Read a line from standard input, with a prompt on a terminal; None at the end of the input."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's handler would not interrupt the read
    try:
        line = input(prompt if sys.stdin.isatty() else "")
        return line.encode(errors="surrogateescape").decode(errors="replace")  # replaces bytes that are not UTF-8
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text ({error.reason}). Convert it first.") from error
    except EOFError:
        return None
    finally:
        signal.signal(signal.SIGINT, before)


def _human_engine(dialog: Dialog) -> Engine:
    """Create an engine whose turns a person types. It blocks the event loop, but nothing else runs meanwhile."""
    renderer, stops = dialog.renderer, dialog.parser.stop if dialog.toolbox is not None else ()

    def take_turn(token_ids: list[int]) -> list[int]:
        text = _read_turn(dialog)
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        ids: list[int] = renderer.tokenizer.encode(text[: min(ends, default=None)], add_special_tokens=False)
        return ids if ends else ids + renderer.close_turn_ids

    return FakeEngine(take_turn, stop_token_ids=renderer.end_of_turn_ids)


def _read_turn(dialog: Dialog) -> str:
    """Read lines up to an empty one and expand calls; ask again if a call is invalid."""
    while True:
        lines: list[str] = []
        try:
            while line := _read_line("  ...> " if lines else "model> "):
                lines.append(line)
        except KeyboardInterrupt:
            raise asyncio.CancelledError from None  # as Ctrl-C does for a coroutine that does not block the loop
        if lines == [_QUIT] or (line is None and not lines):
            raise _SessionEndedError
        try:
            return expand_calls("\n".join(lines), dialog)
        except ToolError as error:
            console().print(Text(str(error), ERROR_STYLE))


def expand_calls(text: str, dialog: Dialog) -> str:
    """Replace each `/call NAME ARGUMENTS` with a call in the parser's format.

    Args:
        text: A turn. A `/call` starts at the beginning of a line and extends to the next `/call`; the text before the
            first one is unchanged.
        dialog: Has the tools and the parser.

    Raises:
        ToolError: The arguments are neither a JSON object nor plain text for a tool with one text argument.
    """
    said, *parts = _CALL.split(text)
    return said + "\n".join(_render_call(*call, dialog) for call in zip(parts[::2], parts[1::2], strict=True))


def _render_call(name: str, text: str, dialog: Dialog) -> str:
    tools = dialog.toolbox.tools if dialog.toolbox is not None else {}
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        if name not in tools:
            raise ToolError(unknown_name("/call", name, tools))
        try:
            arguments = one_text_argument(tools[name].schema, "/call").to_arguments(text.rstrip("\n"))
        except ConfigError as error:
            raise ToolError(f"/call {name}: arguments must be a JSON object, got {text!r}. Write one.") from error
    written = dialog.parser.render(ToolCall(name, arguments))
    if written is None:
        raise ToolError("/call: only the chat template knows this call format. Write the call yourself.")
    return written


def _start_engine(config: Config, dialog: Dialog, runner: asyncio.Runner, stack: ExitStack) -> Engine:
    """Start vLLM with the model; the stack shuts it down."""
    cores = () if runs_on_cuda(config) else tuple(sorted(os.sched_getaffinity(0)))
    sockets = stack.enter_context(owned_folder("turnwise-play-"))
    os.environ.update(engine_environment(config, cores, sockets))  # read by vLLM and its child processes
    from rl.inference.engine import VllmEngine

    # Ctrl-C reaches every process of the terminal and would end vLLM's. So block it in the threads that start them;
    # children inherit the signal mask. Multiprocessing's resource tracker unblocks the signal when it starts, so start
    # it before.
    resource_tracker.ensure_running()
    threads = ThreadPoolExecutor(initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT}))
    runner.get_loop().set_default_executor(threads)
    log = Path(config.megatron_training.output_dir) / "play.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    model = Path(config.actor_config.load)
    console().print(Text(f"starting vLLM with {model}; its messages are in {log}"), soft_wrap=True)
    seed, ends = config.megatron_training.seed, dialog.renderer.end_of_turn_ids
    with _redirect_output(log):
        engine = runner.run(VllmEngine.create(config, model_folder=model, replica=0, seed=seed, stop_token_ids=ends))

    def end() -> None:
        with _redirect_output(log):
            runner.run(engine.shutdown())

    stack.callback(end)
    return engine


@contextmanager
def _redirect_output(log: Path) -> Iterator[None]:
    """Redirect the output of this process to a file; children started meanwhile keep it."""
    originals = {fd: os.dup(fd) for fd in (1, 2)}
    with log.open("a") as stream:
        for fd in originals:
            os.dup2(stream.fileno(), fd)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, original in originals.items():
            os.dup2(original, fd)
            os.close(original)


async def _check_tools(path: Path) -> None:
    """Check the tools before their services start."""
    toolbox = load_toolbox(path)
    for text in toolbox.warnings:
        logger.warning("%s", text)
    try:
        await asyncio.wait_for(toolbox.check(), _SERVICE_TIMEOUT_S)
    except TimeoutError as error:
        raise ToolError(
            f"{path}: a service did not answer within {_SERVICE_TIMEOUT_S:.0f} s. Check that it is running."
        ) from error
    finally:
        await toolbox.close()


def _print_introduction(dialog: Dialog, *, by_hand: bool) -> None:
    """Print the tools, and in manual mode the prompt format and help."""
    functions = [schema["function"] for schema in (dialog.toolbox.schemas if dialog.toolbox is not None else [])]
    tools = [f"{f['name']}({', '.join((f.get('parameters') or {}).get('properties') or {})})" for f in functions]
    print_message(console(), "tools", "\n".join(tools))
    if by_hand:
        ids = dialog.renderer.render_prompt([{"role": "user", "content": "(the question)"}])
        print_message(console(), "what the model reads", dialog.renderer.decode(ids))
    if sys.stdin.isatty():
        console().print(Text(_HELP + _HELP_BY_HAND * by_hand, "bold"), soft_wrap=True)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM, and SIGHUP from a closed terminal, into an exception, so that clean-up runs."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
