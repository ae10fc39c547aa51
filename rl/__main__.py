"""The command line: `python -m rl COMMAND`, or `rl COMMAND`.

Each command imports its modules when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rl.errors import StoppedError, TurnwiseError, unknown_name

if TYPE_CHECKING:
    from rl.config.load import Composed
    from rl.config.problems import Problem
    from rl.config.schema import Config

logger = logging.getLogger("rl.command")  # `python -m rl` names this module __main__, and such lines are not shown

_ALLOW_HOST = "further host names under which clients call the server, separated by commas"
_HUMAN_TIMEOUT_S = 86400
"""Time limit of a trajectory whose turns a person writes."""
_TRY_AGAIN = 75
"""Exit code of a run that has saved and ended at a signal: EX_TEMPFAIL of sysexits.h."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 for an error caused by the user or the environment, 75 for a run that has saved and ended
        at SIGTERM or SIGUSR1, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # background job of a script: handle SIGINT anyway
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise TurnwiseError(unknown_name("rl", argv[0], COMMANDS))
        return COMMANDS[argv[0]](argv[1:])
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        return _TRY_AGAIN
    except TurnwiseError as failure:
        sys.stderr.write(f"{failure}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130


def init(argv: list[str]) -> int:
    """Write a small project of your own: configuration, reward, tool, data, test."""
    from rl.project import main as write

    return write(argv)


def train(argv: list[str]) -> int:
    """Reinforcement learning: sample, learn, publish."""
    parser = _config_parser("train", train)
    replay = "train on what a run recorded; short for megatron_training.replay=RUN"
    parser.add_argument("--replay", metavar="RUN", help=replay)
    arguments = _parse_run(parser, argv)
    if arguments.replay:
        arguments.overrides.append(f"megatron_training.replay={arguments.replay}")
    _log_to_terminal()
    config = _to_continue(_checked_config(arguments, "train"))
    if config is None:
        return 0
    from rl import rollout_only
    from rl import train as page

    run = rollout_only.main if config.megatron_training.rollout_only else page.main
    run(config, _run_name(arguments))
    return 0


def sft(argv: list[str]) -> int:
    """Cold start: supervised training on demonstrations."""
    arguments = _parse_run(_config_parser("sft", sft), argv)
    _log_to_terminal()
    config = _to_continue(_checked_config(arguments, "sft"))
    if config is None:
        return 0
    from rl import sft as page

    page.main(config, _run_name(arguments))
    return 0


def evaluate(argv: list[str]) -> int:
    """Score a model, a checkpoint or a served model on the evaluation sets."""
    from rl.remote.options import add_options, endpoint_of, output_of

    parser = _config_parser("evaluate", evaluate)
    add_options(parser)
    arguments = _parse_run(parser, argv, learns=False)
    endpoint, output = endpoint_of(arguments), output_of(arguments)
    if arguments.model and endpoint is None:
        arguments.overrides.append(f"actor_config.load={arguments.model}")
    _log_to_terminal()
    config = _checked_config(arguments, "endpoint" if endpoint else "evaluate")
    from rl import evaluate as page

    page.main(config, _run_name(arguments), endpoint or Path(config.actor_config.load), output)
    return 0


def serve(argv: list[str]) -> int:
    """Serve the model to agents that live elsewhere, and train on what they do."""
    parser = _config_parser("serve", serve)
    parser.add_argument("--host", help="address to listen on; short for serve_config.host=HOST")
    parser.add_argument("--port", help="port to listen on; short for serve_config.port=PORT")
    hosts = f"{_ALLOW_HOST}; short for serve_config.allowed_hosts=[NAMES]"
    parser.add_argument("--allow-host", type=_names, metavar="NAMES", help=hosts)
    arguments = parser.parse_intermixed_args(argv)
    arguments.overrides += [
        f"serve_config.{key}={value}" for key in ("host", "port") if (value := getattr(arguments, key)) is not None
    ]
    if arguments.allow_host is not None:
        arguments.overrides.append(f"serve_config.allowed_hosts={json.dumps(arguments.allow_host)}")
    _log_to_terminal()
    config = _checked_config(arguments, "train")
    from rl import serve as page

    page.main(config, _run_name(arguments))
    return 0


def play(argv: list[str]) -> int:
    """Ask a model in the terminal and watch it use its tools, or take its turns to test a tool."""
    parser = _config_parser("play", play, default="play")
    parser.add_argument("--tool-config", metavar="FILE", help="tool YAML; short for rl_config.tool_config_path=FILE")
    parser.add_argument("--model", metavar="FOLDER", help="model or checkpoint; short for actor_config.load=FOLDER")
    parser.add_argument("--human", action="store_true", help="you write the model's turns; needs only its tokenizer")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.tool_config:
        arguments.overrides += [
            f"rl_config.tool_config_path={arguments.tool_config}",
            "rl_config.multi_turn_enable=true",
        ]
    if arguments.model:
        key = "megatron_training.tokenizer_name_or_path" if arguments.human else "actor_config.load"
        arguments.overrides.append(f"{key}={arguments.model}")
    if arguments.human:
        arguments.overrides.insert(0, f"rl_config.trajectory_timeout={_HUMAN_TIMEOUT_S}")
    _log_to_terminal()
    config = _checked_config(arguments, "evaluate")
    from rl import play as page

    page.main(config, by_hand=arguments.human)
    return 0


def preprocess(argv: list[str]) -> int:
    """Convert a dataset to rows of messages, ground truth and data source."""
    arguments = _config_parser("preprocess", preprocess, example="datasets/NAME").parse_intermixed_args(argv)
    _log_to_terminal()
    from rl.config.load import load_dataset_config
    from rl.data.preprocess import preprocess as write_rows

    config = load_dataset_config(arguments.config_name, arguments.overrides, arguments.config_dir)
    sys.stdout.write(f"{write_rows(config)}\n")
    return 0


def validate(argv: list[str]) -> int:
    """Print the resolved configuration and the arithmetic of a step; list every problem."""
    parser = _config_parser("validate", validate)
    parser.add_argument("--strict", action="store_true", help="require model, data and services, as for train")
    arguments = parser.parse_intermixed_args(argv)
    composed = _compose(arguments)
    from rl.config.model_facts import find_model_facts
    from rl.config.report import print_arithmetic, print_configuration, print_problems
    from rl.observability.log import console
    from rl.run.auto_resume import with_checkpoint

    config = with_checkpoint(composed.config) if arguments.strict else composed.config
    problems = _problems_of(composed, config, is_strict=arguments.strict)
    print_configuration(console(), composed.config)
    print_arithmetic(console(), composed.config, find_model_facts(composed.config)[0])
    print_problems(console(), problems)
    return _verdict(arguments.config_name, problems)


def migrate(argv: list[str]) -> int:
    """Convert a configuration of MindSpeed-RL, verl or TRL, and say what became of every key."""
    from rl.config.load import compose_config
    from rl.config.problems import Severity
    from rl.migrate.command import main as convert

    path = convert(argv)
    if path is None:
        return 0
    composed = compose_config(str(path))
    problems = _problems_of(composed, composed.config, is_strict=False)
    errors = [problem.text for problem in problems if problem.severity is Severity.ERROR]
    sys.stdout.write("".join(f"error {text}\n" for text in errors))
    return _verdict(str(path), problems)


def sandbox(argv: list[str]) -> int:
    """Run the code sandbox as a standalone server."""
    parser = _parser("sandbox", sandbox)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="programs that run at once; default: four per core")
    parser.add_argument("--max-queue", type=int, default=4096, help="requests that may wait; default: %(default)s")
    parser.add_argument("--allow-host", type=_names, default=(), metavar="NAMES", help=_ALLOW_HOST)
    parser.add_argument("--allow-network", action="store_true", help="give programs access to the machine's network")
    isolation = "refuse to start if a layer of isolation is missing"
    parser.add_argument("--require-isolation", action="store_true", help=isolation)
    modules = "modules to preload, separated by commas; default: numpy,sympy,scipy if installed"
    parser.add_argument("--preload", type=_names, metavar="MODULES", help=modules)
    arguments = parser.parse_args(argv)
    _log_to_terminal()
    from rl.services.sandbox.server import serve

    serve(**vars(arguments))
    return 0


def retriever(argv: list[str]) -> int:
    """Run the retriever of a corpus as a standalone server."""
    from rl.services.retriever.server import BACKENDS, serve

    parser = _parser("retriever", retriever)
    corpus = ".jsonl or .parquet; several files form one corpus"
    parser.add_argument("--corpus", "--shards", type=Path, nargs="+", required=True, metavar="FILE", help=corpus)
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="default: next to the corpus")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--allow-host", type=_names, default=(), metavar="NAMES", help=_ALLOW_HOST)
    parser.add_argument("--backend", choices=BACKENDS, default="bm25s", help="default: %(default)s")
    model = "sentence-transformers model folder, for --backend dense"
    parser.add_argument("--model", type=Path, metavar="FOLDER", help=model)
    arguments = parser.parse_args(argv)
    _log_to_terminal()
    serve(**vars(arguments))
    return 0


def score(argv: list[str]) -> int:
    """Score recorded trajectories with the configured rewards, without a model."""
    parser = _config_parser("score", score)
    source = "a run directory, or a .jsonl file with trajectories"
    parser.add_argument("--trajectories", type=Path, required=True, metavar="RUN", help=source)
    parser.add_argument("--step", type=int, help="step of the run; default: the last")
    arguments = parser.parse_intermixed_args(argv)
    _log_to_terminal()
    config = _checked_config(arguments, "evaluate")
    from rl.score import main as score_again

    return score_again(config, arguments.trajectories, arguments.step)


def view(argv: list[str]) -> int:
    """Print a trajectory of a run in color, or show the run as a page."""
    from rl.observability.viewer import main as show

    return show(argv)


def explain(argv: list[str]) -> int:
    """Print what happened in a step: rewards, advantages, what was left out and why, which tokens moved."""
    from rl.observability.explain_view import main as tell

    return tell(argv)


def compare(argv: list[str]) -> int:
    """Compare runs: settings, curves with the seeds' band, final values with intervals."""
    from rl.observability.compare import main as show

    return show(argv)


def report(argv: list[str]) -> int:
    """Print accuracy before and after a run, and draw its curves."""
    from rl.observability.report import main as summarize

    return summarize(argv)


def timeline(argv: list[str]) -> int:
    """Show when driver and workers did what in a step, and write it for Perfetto."""
    from rl.observability.trace import main as show

    return show(argv)


def doctor(argv: list[str]) -> int:
    """Check the machine, and a configuration on it, before a long run."""
    from rl.doctor.main import main as examine

    return examine(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "init": init,
    "train": train,
    "sft": sft,
    "serve": serve,
    "evaluate": evaluate,
    "play": play,
    "preprocess": preprocess,
    "validate": validate,
    "migrate": migrate,
    "sandbox": sandbox,
    "retriever": retriever,
    "score": score,
    "view": view,
    "explain": explain,
    "report": report,
    "timeline": timeline,
    "doctor": doctor,
    "compare": compare,
}
"""Commands; each takes the arguments after its name and returns the exit code."""


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_summary(command)}" for name, command in COMMANDS.items()]
    return "usage: rl COMMAND [options]\n\n" + "\n".join(lines) + "\n\n`rl COMMAND --help` shows the options.\n"


def _summary(command: Callable[[list[str]], int]) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


def _parser(name: str, command: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"rl {name}", description=_summary(command))


def _config_parser(
    name: str, command: Callable[[list[str]], int], example: str = "NAME", default: str | None = None
) -> argparse.ArgumentParser:
    parser = _parser(name, command)
    which = "a YAML file in --config-dir, or a path" + (f"; default: {default}" if default else "")
    parser.add_argument("--config-name", required=default is None, default=default, metavar=example, help=which)
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="folder of your YAML files; default: configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example rl_config.epochs=2")
    return parser


def _parse_run(parser: argparse.ArgumentParser, argv: list[str], *, learns: bool = True) -> argparse.Namespace:
    """Parse the arguments of a run; short forms of keys become overrides."""
    text = "run without Ray in this process, for breakpoints; short for rl_config.in_process=true"
    parser.add_argument("--in-process", action="store_true", help=text)
    if learns:
        text = "profile this step, from 1; short for megatron_training.profile_step=N"
        parser.add_argument("--profile-step", metavar="N", help=text)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.in_process:
        arguments.overrides.append("rl_config.in_process=true")
    if learns and arguments.profile_step is not None:
        arguments.overrides.append(f"megatron_training.profile_step={arguments.profile_step}")
    return arguments


def _compose(arguments: argparse.Namespace) -> Composed[Config]:
    from rl.config.load import compose_config

    return compose_config(arguments.config_name, arguments.overrides, arguments.config_dir)


def _checked_config(arguments: argparse.Namespace, task: str) -> Config:
    """Compose the configuration, log its warnings, and raise its errors."""
    from rl.config.problems import Severity, raise_errors, without_consequences
    from rl.config.validate import Task, find_problems

    composed = _compose(arguments)
    found = find_problems(composed.config, composed.given, Task(task))
    problems = [*composed.problems, *without_consequences(found, composed.problems)]
    for problem in problems:
        if problem.severity is Severity.WARNING:
            logger.warning("%s", problem.text)
    raise_errors(problems)
    return composed.config


def _problems_of(composed: Composed, config: Config, *, is_strict: bool) -> list[Problem]:
    """All problems of a configuration: of its keys, and of the run that it describes."""
    from rl.config.problems import without_consequences
    from rl.preflight import inspect_run

    found = inspect_run(config, composed.given, is_strict=is_strict)
    return [*composed.problems, *without_consequences(found, composed.problems)]


def _verdict(name: str, problems: list[Problem]) -> int:
    """Print whether a configuration is valid; return the exit code."""
    from rl.config.problems import Severity

    num_errors = sum(problem.severity is Severity.ERROR for problem in problems)
    verdict = f"{num_errors} errors." if num_errors else "The configuration is valid."
    sys.stdout.write(f"{name}: {verdict}\n")
    return 2 if num_errors else 0


def _to_continue(config: Config) -> Config | None:
    """The configuration with the checkpoint that `resume_mode` finds; None if the run has ended, which is said."""
    from rl.run.auto_resume import with_checkpoint
    from rl.run.resume import why_ended

    found = with_checkpoint(config)
    if found is not config and found.megatron_training.resume:
        checkpoint = Path(found.megatron_training.resume)
        if ended := why_ended(found, checkpoint):
            sys.stdout.write(f"{checkpoint.parent.parent}: finished already. {ended}\n")
            return None
    return found


def _run_name(arguments: argparse.Namespace) -> str:
    return Path(arguments.config_name).stem


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _log_to_terminal() -> None:
    from rl.observability.log import setup_logging

    setup_logging()


if __name__ == "__main__":
    sys.exit(main())
