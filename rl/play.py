"""A conversation in the terminal with the agent loop of training, in which a model takes its turns, or a person does.

Each question is a trajectory of its own, from the prompt to its `StopReason`, as in a rollout; nothing is learned.
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
You write the model's turns: lines, and an empty one to end a turn.
`/call NAME ARGUMENTS` writes a call; the arguments are a JSON object, or the plain text of a tool that takes one."""
_CALL = re.compile(r"^/call[ \t]+(\S+)\s?", re.MULTILINE)


class _SessionEndedError(Exception):
    """Whoever types has left in the middle of a turn."""


def main(config: Config, *, by_hand: bool) -> None:
    """Answer the questions of standard input, one a line, until it ends.

    Args:
        config: `rl_config` says which tools there are and how calls are written, `actor_config.load` which model
            answers, `generate_config.eval_sampling_config` how it is sampled.
        by_hand: Ask the terminal for the model's turns instead of a model, of which then the tokenizer is needed alone.

    Raises:
        TurnwiseError: Anything a user can mend.
    """
    folder = Path(config.megatron_training.tokenizer_name_or_path or config.actor_config.load)
    if not folder.is_dir():
        raise ModelError(
            f"--model: no folder '{folder}'. Name a Hugging Face model's{', for its tokenizer' * by_hand}; "
            "`python tools/fetch_model.py` fetches a small one."
        )
    with ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        runner = stack.enter_context(asyncio.Runner())
        if config.rl_config.multi_turn_enable:
            runner.run(_check_tools(Path(config.rl_config.tool_config_path or "")))
        overrides = stack.enter_context(embedded_services(config))
        dialog = load_dialog(config, tool_overrides=overrides)
        if (toolbox := dialog.toolbox) is not None:
            stack.callback(lambda: runner.run(toolbox.close()))
        engine = _person(dialog) if by_hand else _model(config, dialog, runner, stack)
        stack.callback(ignore_interrupts)  # what follows has deadlines of its own
        _introduce(dialog, by_hand=by_hand)
        _converse(_Player(config, dialog, engine, by_hand=by_hand), runner)


class _Player:
    """Runs one trajectory after the other and shows them as they come."""

    def __init__(self, config: Config, dialog: Dialog, engine: Engine, *, by_hand: bool) -> None:
        self._loop = AgentLoop(engine, dialog.renderer, dialog.toolbox, dialog.parser, config, self._show)
        self._by_hand = by_hand
        self._num_questions = self._num_turns = 0
        sampling, generate = config.generate_config.eval_sampling_config, config.generate_config
        self._sampling = Sampling(
            sampling.temperature, generate.sampling_config.max_tokens, top_p=sampling.top_p, top_k=sampling.top_k
        )

    async def answer(self, question: str) -> StopReason:
        """Run the trajectory of a question."""
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


def _converse(player: _Player, runner: asyncio.Runner) -> None:
    """Ask for questions until there are no more. Ctrl-C stops an answer, and in a pipe all."""
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
    """A line of standard input, with the prompt where a person types it; None at the end of the input."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a running loop would note Ctrl-C and read on
    try:
        line = input(prompt if sys.stdin.isatty() else "")
        return line.encode(errors="surrogateescape").decode(errors="replace")  # bytes that are not UTF-8 are no text
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text ({error.reason}). Convert it first.") from error
    except EOFError:
        return None
    finally:
        signal.signal(signal.SIGINT, before)


def _person(dialog: Dialog) -> Engine:
    """An engine whose tokens a person types. It may hold up the event loop: nothing else runs meanwhile."""
    renderer, stops = dialog.renderer, dialog.parser.stop if dialog.toolbox is not None else ()

    def take_turn(token_ids: list[int]) -> list[int]:
        text = _read_turn(dialog)
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        ids: list[int] = renderer.tokenizer.encode(text[: min(ends, default=None)], add_special_tokens=False)
        return ids if ends else ids + renderer.close_turn_ids

    return FakeEngine(take_turn, stop_token_ids=renderer.end_of_turn_ids)


def _read_turn(dialog: Dialog) -> str:
    """Lines up to an empty one, calls written out. One with a call that cannot be written is asked for again."""
    while True:
        lines: list[str] = []
        try:
            while line := _read_line("  ...> " if lines else "model> "):
                lines.append(line)
        except KeyboardInterrupt:
            raise asyncio.CancelledError from None  # as Ctrl-C reaches a coroutine that does not hold up the loop
        if lines == [_QUIT] or (line is None and not lines):
            raise _SessionEndedError
        try:
            return expand_calls("\n".join(lines), dialog)
        except ToolError as error:
            console().print(Text(str(error), ERROR_STYLE))


def expand_calls(text: str, dialog: Dialog) -> str:
    """Write out each `/call NAME ARGUMENTS`, which begins a line and reaches to the next one, in the parser's format.

    Args:
        text: A turn; all before the first `/call` stays as it is.
        dialog: Has the tools and the parser.

    Raises:
        ToolError: The arguments are neither a JSON object nor the text of the one argument that the tool takes.
    """
    said, *parts = _CALL.split(text)
    return said + "\n".join(_written_call(*call, dialog) for call in zip(parts[::2], parts[1::2], strict=True))


def _written_call(name: str, text: str, dialog: Dialog) -> str:
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
            raise ToolError(f"/call {name}: needs its arguments as a JSON object, got {text!r}. Write one.") from error
    written = dialog.parser.render(ToolCall(name, arguments))
    if written is None:
        raise ToolError("/call: this format of calls is known to the chat template alone. Write the call yourself.")
    return written


def _model(config: Config, dialog: Dialog, runner: asyncio.Runner, stack: ExitStack) -> Engine:
    """Start vLLM with the model; it ends with the stack."""
    cores = () if runs_on_cuda(config) else tuple(sorted(os.sched_getaffinity(0)))
    sockets = stack.enter_context(owned_folder("turnwise-play-"))
    os.environ.update(engine_environment(config, cores, sockets))  # vLLM and the processes it starts read it
    from rl.inference.engine import VllmEngine

    # Ctrl-C reaches every process of the terminal, and would end vLLM's. They inherit what the thread that starts them
    # blocks; but the resource tracker of multiprocessing, if it is not there yet, opens that again.
    resource_tracker.ensure_running()
    threads = ThreadPoolExecutor(initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT}))
    runner.get_loop().set_default_executor(threads)
    log = Path(config.megatron_training.output_dir) / "play.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    model = Path(config.actor_config.load)
    console().print(Text(f"starting vLLM with {model}; its messages are in {log}"), soft_wrap=True)
    seed, ends = config.megatron_training.seed, dialog.renderer.end_of_turn_ids
    with _output_in(log):
        engine = runner.run(VllmEngine.create(config, model_folder=model, replica=0, seed=seed, stop_token_ids=ends))

    def end() -> None:
        with _output_in(log):
            runner.run(engine.shutdown())

    stack.callback(end)
    return engine


@contextmanager
def _output_in(log: Path) -> Iterator[None]:
    """Send what this process prints to a file; children that start meanwhile print there to their end."""
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
    """Find out what is wrong with the tools before a service starts for them."""
    toolbox = load_toolbox(path)
    for text in toolbox.warnings:
        logger.warning("%s", text)
    try:
        await asyncio.wait_for(toolbox.check(), _SERVICE_TIMEOUT_S)
    except TimeoutError as error:
        raise ToolError(f"{path}: a service gave no answer in {_SERVICE_TIMEOUT_S:.0f} s. Is it up?") from error
    finally:
        await toolbox.close()


def _introduce(dialog: Dialog, *, by_hand: bool) -> None:
    """Say what there is to call, and to a person how."""
    functions = [schema["function"] for schema in (dialog.toolbox.schemas if dialog.toolbox is not None else [])]
    tools = [f"{f['name']}({', '.join((f.get('parameters') or {}).get('properties') or {})})" for f in functions]
    print_message(console(), "tools", "\n".join(tools))
    if by_hand:
        ids = dialog.renderer.render_prompt([{"role": "user", "content": "(the question)"}])
        print_message(console(), "what the model reads", dialog.renderer.decode(ids))
    if sys.stdin.isatty():
        console().print(Text(_HELP + _HELP_BY_HAND * by_hand, "bold"), soft_wrap=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, unwind the stack, so that nothing is left running."""

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
