"""Reads YAML files in any Unicode encoding. Errors name file, line and cure."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader  # SafeLoader that reads 1e-6 as a number and refuses a key given twice

from rl.errors import ConfigError

_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_DEEPEST = 100
_MOST_VALUES = 100_000
_CURES = {
    "'\\t'": "Indent with spaces, not tabs.",
    "mapping values are not allowed": "Put text that has a colon and a space in it between quotes.",
    "duplicate key": "Keep one of the two.",
    "expected a single document": "Remove the line `---`: a file holds one mapping.",
}


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a file that contains one mapping.

    Args:
        path: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Returns:
        The mapping; empty for an empty file.

    Raises:
        ConfigError: The file cannot be read, or is not such YAML.
    """
    return parse_mapping(path, read_text(path))


def parse_mapping(path: Path, text: str) -> dict[Any, Any]:
    """Parse the text of a file that contains one mapping, as `read_yaml` does."""
    value = parse_yaml(str(path), text)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(
            f"{path}: must hold `key: value` lines, got {_kind(value)}. Write the name of its key before it."
        )
    return value or {}


def read_text(path: Path) -> str:
    """Decode a text file by its byte order mark, or as UTF-8 without one.

    Raises:
        ConfigError: The file cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise ConfigError(
            f"{path}: cannot be read, {failure.strerror}. Correct the path or its permissions."
        ) from failure
    encoding = next((name for mark, name in _ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as failure:
        line = content.count(b"\n", 0, failure.start) + 1
        raise ConfigError(f"{path}, line {line}: is not {encoding} text. Save the file as UTF-8.") from failure


def parse_yaml(where: str, text: str) -> Any:
    """Parse one YAML document.

    Args:
        where: Name of the document in errors.
        text: The document.

    Returns:
        Plain Python values.

    Raises:
        ConfigError: It is malformed, nested more than 100 deep, or its aliases contain themselves or expand too much.
    """
    loader = None
    try:
        _check_depth(where, text)
        loader = get_yaml_loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Shape(where).measure(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as failure:
        line = failure.problem_mark.line + 1 if failure.problem_mark else 1
        problem = " ".join(str(failure.problem or failure.context).split())
        cure = next(
            (cure for sign, cure in _CURES.items() if sign in problem), "Correct the line, or the one before it."
        )
        raise ConfigError(f"{where}, line {line}: is not valid YAML: {problem}. {cure}") from failure
    except yaml.reader.ReaderError as failure:
        line = text.count("\n", 0, failure.position) + 1
        raise ConfigError(
            f"{where}, line {line}: holds the character number {failure.character!r}, which YAML does not allow. "
            "Save the file as UTF-8 text without control characters."
        ) from failure
    except (ValueError, LookupError, TypeError, AttributeError) as failure:  # from PyYAML, for `!!int x` and the like
        raise ConfigError(f"{where}: holds a value that cannot be read: {failure}. Put it between quotes.") from failure
    finally:
        if loader is not None:
            loader.dispose()


def unfinished_reference(where: str) -> str:
    """The message for a text that OmegaConf reads as the beginning of a reference and cannot parse."""
    return f"{where}: `${{` begins a reference to another key. Close it with `}}`, or write \\${{ for the characters."


def _check_depth(where: str, text: str) -> None:
    """Check the depth on events, since reading a document is recursive and parsing its events is not."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigError(_too_deep(f"{where}, line {line}"))


def _too_deep(where: str) -> str:
    return f"{where}: lists and mappings are nested more than {_DEEPEST} deep. Write it flatter."


class _Shape:
    """Depth and size of a document with every alias expanded."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """Depth and number of values of a node.

        Raises:
            ConfigError: It contains itself, or is too deep or too large.
        """
        if isinstance(node, yaml.ScalarNode):
            return 0, 1
        where = f"{self._where}, line {node.start_mark.line + 1}"
        if id(node) in self._open:
            raise ConfigError(f"{where}: an alias (`*name`) is inside the value that it names. Write the value out.")
        if id(node) not in self._known:
            self._open.add(id(node))
            children = [self.measure(child) for child in _children(node)]
            self._open.discard(id(node))
            depth, size = 1 + max((d for d, _ in children), default=0), 1 + sum(s for _, s in children)
            if depth > _DEEPEST:
                raise ConfigError(_too_deep(where))
            if size > _MOST_VALUES:
                raise ConfigError(f"{where}: holds more than {_MOST_VALUES:,} values. Write less, or fewer aliases.")
            self._known[id(node)] = depth, size
        return self._known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r:.60}"
