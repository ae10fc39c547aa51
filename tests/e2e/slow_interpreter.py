"""A code interpreter whose programs take a second each, so that some are always under way."""

from __future__ import annotations

from typing import Any

from rl.tools.base import ToolOutput
from rl.tools.retool import InterpreterState, ReTool


class SlowInterpreter(ReTool):
    """Sleeps in the sandbox before the model's code runs there."""

    async def execute(self, state: InterpreterState | None, arguments: dict[str, Any]) -> ToolOutput:
        code = f"import time\ntime.sleep(1)\n{arguments['code']}"
        return await super().execute(state, {**arguments, "code": code})
