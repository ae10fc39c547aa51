"""What a conversation needs besides an engine: the renderer, the tools and the parser, built from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl.chat.parsers import Parser, load_parser
from rl.chat.renderer import Renderer, load_tokenizer
from rl.chat.self_test import check_renderer
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.rollout.environment_code import load_environment
from rl.tools.registry import Toolbox, load_toolbox


@dataclass(slots=True)
class Dialog:
    """The parts an agent loop is made of."""

    renderer: Renderer
    toolbox: Toolbox | None
    """None without `multi_turn_enable`, or without tools besides those of an environment."""
    parser: Parser


def configured_tokenizer(config: Config) -> PreTrainedTokenizerFast:
    """Load the tokenizer that a configuration names, by default the model's. Raises ModelError."""
    return load_tokenizer(Path(config.megatron_training.tokenizer_name_or_path or config.actor_config.load))


def load_dialog(
    config: Config, *, tool_overrides: dict[str, dict] | None = None, toolbox: Toolbox | None = None
) -> Dialog:
    """Build renderer, tools and parser, and prove that they agree.

    Args:
        config: The run's configuration.
        tool_overrides: Configuration of a tool, by its name, that the run knows better than the tool YAML: the
            address of an embedded service.
        toolbox: The tools, if they are loaded already.

    Returns:
        The parts, self-tested.

    Raises:
        ConfigError: There is no such parser or template, the parser cannot call one of the tools, or the environment is
            wrong.
        ModelError: The tokenizer folder is missing, or the chat template and the parser disagree.
        ToolError: The tool YAML is wrong.
    """
    rl = config.rl_config
    tokenizer = configured_tokenizer(config)
    if toolbox is None and rl.multi_turn_enable and rl.tool_config_path:
        toolbox = load_toolbox(Path(rl.tool_config_path), overrides=tool_overrides)
    schemas = toolbox.schemas if toolbox else []
    if rl.multi_turn_enable and (environment := load_environment(rl)) is not None:
        names = [tool["function"]["name"] for tool in environment.tools]
        if taken := sorted({schema["function"]["name"] for schema in schemas} & set(names)):
            raise ConfigError(
                f"rl_config.environment: '{rl.environment}' has a tool '{taken[0]}', and so has tool_config_path. "
                "Rename one of them."
            )
        schemas = [*schemas, *environment.tools]
    parser = load_parser(rl.tool_parser_format, schemas, tokenizer)
    renderer = Renderer(tokenizer, rl.prompt_type, schemas, parser)
    check_renderer(renderer, parser)
    return Dialog(renderer, toolbox, parser)
