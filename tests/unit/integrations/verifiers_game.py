"""Environments of verifiers v0, for the tests beside: a game of several turns, one with a tool, one of groups."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset


class Game(vf.MultiTurnEnv):
    """Guess the number of the row; `setup_state`, `env_response` and a stop condition, as the package's docs show."""

    async def setup_state(self, state: vf.State) -> None:
        assert state["info"] == {"level": 2}, "of the row"
        state["number"] = int(state["answer"])
        state["found"] = False

    @vf.stop
    async def is_found(self, state: vf.State) -> bool:
        return bool(state["found"])

    async def env_response(self, messages: vf.Messages, state: vf.State, **kwargs: Any) -> vf.Messages:
        guess = int(str(messages[-1]["content"]))
        state["found"] = guess == state["number"]
        if state["found"]:
            state["final_env_response"] = [{"role": "user", "content": "Right."}]
        return [{"role": "user", "content": "Higher." if guess < state["number"] else "Lower."}]


def found(state: vf.State, **kwargs: Any) -> float:
    return float(state["found"])


def turns(state: vf.State, **kwargs: Any) -> float:
    return float(len(state["trajectory"]))


def rows() -> Dataset:
    return Dataset.from_list([{"question": "Guess.", "answer": "7", "info": {"level": 2}}])


def load_game(max_turns: int = 4) -> vf.Environment:
    rubric = vf.Rubric(funcs=[found, turns], weights=[1.0, 0.0])
    game = Game(dataset=rows(), system_prompt="Say a number.", rubric=rubric, max_turns=max_turns)
    return game


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def right(completion: vf.Messages, answer: str, **kwargs: Any) -> float:
    return float(str(completion[-1]["content"]).strip() == answer)


def load_tools() -> vf.Environment:
    return vf.ToolEnv(tools=[add], dataset=rows(), rubric=vf.Rubric(funcs=[right]), max_turns=4)


def best_of_all(states: list[vf.State], **kwargs: Any) -> list[float]:
    return [0.0] * len(states)


def load_groups() -> vf.Environment:
    return Game(dataset=rows(), rubric=vf.Rubric(funcs=[best_of_all]))
