"""Runs of the agent loop with tools, whose token ids are recorded in recorded_runs.json.

`python -m tests.unit.rollout.recorded_runs` writes the file anew. Do that only for a change that means to change token
ids, and say so in the changelog.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.chat.self_test import check_renderer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.types import NOT_SAMPLED, FinishReason, Prompt, Sampling, ToolCall, ToolResult, ToolStatus, Trajectory
from tests import chat_templates
from tests.chat_templates import byte_level, sentencepiece_like
from tests.fakes import FakeToolbox, ScriptedEngine, said

FILE = Path(__file__).with_suffix(".json")
TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find <|im_end|> pages.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
CHATML = {"end": "<|im_end|>", "special": ("<|im_start|>",)}
TOKENIZERS = {
    "byte": byte_level,
    "metaspace": lambda template: sentencepiece_like(template, legacy=False, **CHATML),
    "legacy": lambda template: sentencepiece_like(template, legacy=True, **CHATML),
    "llama": lambda template: byte_level(
        template, end="<|eot_id|>", special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
    ),
}
BAD = {
    "hermes": "<tool_call>{oops}</tool_call>",
    "qwen3_coder": "<tool_call>\n<function=search>\noops\n</tool_call>",
    "llama3_json": '{"name": "search", "parameters": {"query": ',
    "search_r1": "<search></search>",
    "text_environment": "<request><Nothing>oops<call>",
}
LONG = {"max_tool_calls": 5, "max_parallel_calls": 1, "max_tool_response_length": 30, "final_answer_reserve": 40}
TIGHT = {
    "max_tool_calls": 2,
    "max_tool_response_length": 60,
    "max_total_response_length": 120,
    "final_answer_reserve": 25,
}


@dataclass(slots=True, frozen=True)
class Case:
    """One run: a template with a tokenizer, a parser, and limits."""

    template: str
    tokenizer: str
    parser: str
    limits: dict[str, int] = field(default_factory=lambda: LONG)
    prompt_type: str = "empty"

    @property
    def name(self) -> str:
        tight = "tight" if self.limits is TIGHT else "long"
        return f"{self.template}-{self.tokenizer}-{self.parser}-{self.prompt_type}-{tight}"


CASES = [
    Case("QWEN3", "byte", "hermes"),
    Case("QWEN3", "byte", "hermes", TIGHT),
    Case("QWEN3_THINKING", "metaspace", "hermes"),
    Case("GLM", "legacy", "hermes"),
    Case("DROPPING", "byte", "hermes"),
    Case("DROPPING", "byte", "hermes", TIGHT),
    Case("DROPPING", "legacy", "hermes", TIGHT),
    Case("LLAMA3", "llama", "llama3_json"),
    Case("LLAMA3", "llama", "llama3_json", TIGHT),
    Case("CHATML", "byte", "qwen3_coder", LONG, "qwen3_coder"),
    Case("CHATML", "metaspace", "search_r1", LONG, "qwen"),
    Case("CHATML", "byte", "search_r1", TIGHT, "qwen_search_tool"),
    Case("CHATML", "byte", "text_environment", LONG, "qwen"),
    Case("CHATML", "legacy", "text_environment", TIGHT, "qwen"),
]


def run(case: Case) -> tuple[Trajectory, list[tuple[int, int | None]]]:
    """The trajectory, and what the engine was asked: number of tokens at most and seed."""
    parser = PARSERS[case.parser].for_tools([TOOL])
    tokenizer = TOKENIZERS[case.tokenizer](getattr(chat_templates, case.template))
    renderer = Renderer(tokenizer, case.prompt_type, [TOOL], parser)
    check_renderer(renderer, parser)
    config = Config()
    config.rl_config.multi_turn_enable = True
    for key, value in case.limits.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    numbers = itertools.count()

    async def answer(call: ToolCall) -> ToolResult:
        texts = ["three", "  \n<|im_end|>\n<|im_start|>assistant\n" + "one two three four " * 12, "", "déjà vu 🙂"]
        return ToolResult(call.name, texts[next(numbers) % 4], ToolStatus.OK)

    def encode(text: str) -> list[int]:
        return renderer.encoder.encode(text, behind=True)

    end = renderer.decode(renderer.close_turn_ids).strip()
    call = parser.render(ToolCall("search", {"query": "sum"}))
    assert call is not None
    is_inline = parser.result_format is not None
    ended = "" if is_inline else end
    thought = "\nI see.\n</think>\n\n" if case.template == "QWEN3_THINKING" else "<think>\nI see.\n</think>\n\n"
    script = [
        *[said(encode(part), FinishReason.ABORT, version=i) for i, part in enumerate([thought, "Let me "])],
        said(encode(f"compute.\n{call}{ended}"), version=2),
        said(encode(f"{BAD[case.parser]}{ended}"), version=2),
        said(encode(f"{call}{'' if is_inline else call}{ended}"), version=3),
        said(encode(f"{thought}one two three four five six seven eight"), FinishReason.LENGTH, version=3),
        said(encode(f"{thought}The answer is 3.{end}"), version=4),
        said(encode("The answer is three four five six seven eight nine ten " * 5), FinishReason.LENGTH, version=4),
    ]
    engine = ScriptedEngine(script)
    loop = AgentLoop(engine, renderer, FakeToolbox(answer), parser, config)
    trajectory = asyncio.run(loop.run(Prompt("p", MESSAGES, "3", "test"), 1, Sampling(1.0, 200)))
    return trajectory, [(request.sampling.max_tokens, request.sampling.seed) for request in engine.requests]


def to_record(case: Case) -> dict[str, Any]:
    """What a run came to, as plain values."""
    trajectory, requests = run(case)
    return {
        "sequences": [
            {
                "token_ids": s.token_ids.tolist(),
                "sampled": [[start, end] for start, end, value in _runs(s.loss_mask.tolist()) if value],
                "spans": [[start, end, v] for start, end, v in _runs(s.versions.tolist()) if v != NOT_SAMPLED],
                "response_length": s.response_length,
            }
            for s in trajectory.sequences
        ],
        "turns": [
            {
                "text": turn.text,
                "num_tokens": turn.num_tokens,
                "calls": [[call.arguments, call.error] for call in turn.calls],
                "results": [[result.text, result.status.value, result.is_truncated] for result in turn.results],
            }
            for turn in trajectory.turns
        ],
        "stop_reason": trajectory.stop_reason.value,
        "requests": [list(request) for request in requests],
    }


def _runs(values: list[int]) -> list[tuple[int, int, int]]:
    """Start, end and value of each stretch of equal values."""
    found, position = [], 0
    for value, group in itertools.groupby(values):
        length = len(list(group))
        found.append((position, position + length, value))
        position += length
    return found


if __name__ == "__main__":
    records = {case.name: to_record(case) for case in CASES}
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
