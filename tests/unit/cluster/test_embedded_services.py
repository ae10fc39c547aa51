from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.cluster.embedded_services import embedded_services
from rl.config.schema import Config
from rl.tools.registry import load_toolbox
from rl.types import ToolCall

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def config(path: Path, *tools: tuple[str, dict[str, str]]) -> Config:
    tool = {"class_name": "rl.tools.search_tool.SearchTool"}
    entries = [{**tool, "config": settings, "tool_schema": {"function": {"name": name}}} for name, settings in tools]
    (path / "tools.yaml").write_text(yaml.safe_dump({"tools": entries}))
    made = Config()
    made.rl_config.multi_turn_enable, made.rl_config.tool_config_path = True, str(path / "tools.yaml")
    return made


def health(url: str) -> Any:
    with urllib.request.urlopen(url.replace("/retrieve", "/health"), timeout=10) as response:
        return json.load(response)


def test_embedded_services_serve_every_tool_that_asks_and_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"contents": f"document {name}"}) + "\n")
    a, b = ({"retrieval_service_url": "embedded", "corpus_path": str(tmp_path / f"{n}.jsonl")} for n in "ab")
    elsewhere = {"retrieval_service_url": "http://host:8000/retrieve"}
    with embedded_services(config(tmp_path, ("one", a), ("two", b), ("three", a), ("four", elsewhere))) as overrides:
        urls = {name: settings["retrieval_service_url"] for name, settings in overrides.items()}
        assert set(urls) == {"one", "two", "three"}
        assert urls["three"] == urls["one"]
        assert health(urls["one"])["corpus"] == a["corpus_path"]
        assert health(urls["two"])["corpus"] == b["corpus_path"]
    for url in urls.values():
        with pytest.raises(urllib.error.URLError):
            health(url)


async def test_embedded_services_answer_the_tools_that_ship(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"title": "Lima", "text": "The capital of Peru."}\n')
    content = yaml.safe_load((CONFIGS / "tools/search_embedded_config.yaml").read_text())
    content["tools"][0]["config"]["corpus_path"] = str(tmp_path / "corpus.jsonl")
    made = config(tmp_path)
    (tmp_path / "tools.yaml").write_text(yaml.safe_dump(content))
    with embedded_services(made) as overrides:
        toolbox = load_toolbox(tmp_path / "tools.yaml", overrides=overrides)
        session = toolbox.open_session("test-1/0")
        result = await session.execute(ToolCall("search", {"query_list": ["capital of Peru"]}))
        await session.close()
        await toolbox.close()
    assert result.text == "Doc 1 (Title: Lima)\nThe capital of Peru."


def test_embedded_services_start_nothing_without_tools(tmp_path: Path) -> None:
    with embedded_services(Config()) as overrides:
        assert overrides == {}
    made = config(tmp_path, ("search", {"retrieval_service_url": "embedded", "corpus_path": "none.jsonl"}))
    made.rl_config.multi_turn_enable = False
    with embedded_services(made) as overrides:
        assert overrides == {}


def test_embedded_services_know_what_a_tool_class_takes_by_default(tmp_path: Path) -> None:
    made = config(tmp_path)
    schema = {"function": {"name": "code"}}
    entries = [
        {"class_name": "rl.tools.retool.ReTool", "tool_schema": schema},
        {"function": "rl.tools.calculator:calculator"},
    ]
    (tmp_path / "tools.yaml").write_text(yaml.safe_dump({"tools": entries}))
    with embedded_services(made) as overrides:
        assert set(overrides) == {"code"}
