"""The options of `rl evaluate`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rl.errors import ConfigError
from rl.observability.evaluation_output import Output
from rl.observability.log import console
from rl.remote.client import Endpoint


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what names the model, and where the figures go."""
    model = "model folder or checkpoint, short for actor_config.load=MODEL; with --endpoint the model's name there"
    parser.add_argument("--model", help=model)
    url = "evaluate the model of an OpenAI-compatible server, for example http://localhost:8000/v1"
    parser.add_argument("--endpoint", metavar="URL", help=url)
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the server's API key")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON; - is standard output")
    against = "compare with the last evaluation of this run (or a .jsonl file), question by question"
    parser.add_argument("--against", type=Path, metavar="RUN", help=against)


def endpoint_of(arguments: argparse.Namespace) -> Endpoint | None:
    """The served model that the options name; None for a model of this machine.

    Raises:
        ConfigError: Options are missing or contradict each other, or the variable with the key is not set.
    """
    if arguments.endpoint is None:
        if arguments.api_key_env is not None:
            raise ConfigError(
                "--api-key-env: has no effect without --endpoint. Give the server's address, or remove it."
            )
        return None
    url = arguments.endpoint.rstrip("/").removesuffix("/chat/completions")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--endpoint: must begin with http:// or https://, got '{url}'. Write http://HOST:PORT/v1.")
    if not arguments.model:
        raise ConfigError("--model: must name a model of the server with --endpoint, got nothing. Give its name.")
    key = None
    if arguments.api_key_env is not None:
        key = os.environ.get(arguments.api_key_env)
        if not key:
            raise ConfigError(
                "--api-key-env: no variable of this name is set, or it is empty. Export it with the key, and give its "
                "name here, not the key itself."
            )
    return Endpoint(url, arguments.model, key)


def output_of(arguments: argparse.Namespace) -> Output:
    """Where the figures go; with JSON on standard output everything else goes to standard error."""
    if arguments.json == "-":
        console().stderr = True
    return Output(console(), arguments.json, arguments.against)
