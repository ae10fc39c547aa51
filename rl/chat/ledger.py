"""The token sequences of one conversation, which grow by turns and their results.

Rollouts and the demonstrations of a cold start are both put together here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl.types import Message, TokenSequence

if TYPE_CHECKING:
    from rl.chat.renderer import Renderer


@dataclass(slots=True, frozen=True)
class Addition:
    """What the results of a turn add."""

    token_ids: list[int]
    """Behind the sequence, or with `is_new` the whole context of the next one."""
    is_new: bool
    """The chat template rewrote what came before, so that another sequence begins."""
    context_length: int
    """Tokens of the next turn's context."""
    num_results: int
    """Tokens that the response grows by: the suffix that the template puts behind the turn."""
    messages: list[Message]
    """What is rendered again with the next results, where the chat template rewrites history."""


class Ledger:
    """Holds what was sampled as it was sampled, and renders only what follows.

    Attributes:
        sequences: One, or several where the chat template rewrites history.
    """

    def __init__(self, renderer: Renderer, messages: list[Message]) -> None:
        """Begin with a prompt.

        Args:
            renderer: Of the tokenizer that the tokens are of.
            messages: The prompt.
        """
        self._renderer = renderer
        self._messages = list(messages)
        self.sequences = [TokenSequence(renderer.render_prompt(messages))]

    @property
    def sequence(self) -> TokenSequence:
        """The one that grows."""
        return self.sequences[-1]

    @property
    def response_length(self) -> int:
        """Tokens sampled, and tokens of results and headers, each once; as `Trajectory.response_length`."""
        return sum(sequence.response_length for sequence in self.sequences)

    @property
    def is_closed(self) -> bool:
        """The last token ends a turn as the template would."""
        return self.sequence.token_ids[-1:].tolist() == self._renderer.close_turn_ids[-1:]

    def answer(self, texts: list[str]) -> Addition:
        """What the results of the turn that was sampled last would add.

        Args:
            texts: One result for each of its calls, at least one.
        """
        token_ids = self.sequence.token_ids.tolist()
        suffix = self._renderer.render_tool_results(texts, closed=self.is_closed)
        if not self._renderer.rewrites_history:
            return Addition(suffix, False, len(token_ids) + len(suffix), len(suffix), [])
        messages = self._as_messages(texts)
        context = self._renderer.render_prompt(self._messages + messages)
        if context[: len(token_ids)] != token_ids:
            return Addition(context, True, len(context), len(suffix), messages)
        added = context[len(token_ids) :]
        return Addition(added, False, len(context), len(added), messages)

    def append(self, addition: Addition) -> None:
        """Add what `answer` has made, before anything else is sampled."""
        self._messages += addition.messages
        if addition.is_new:
            self.sequences.append(TokenSequence(addition.token_ids, results_length=addition.num_results))
        else:
            self.sequence.append_context(addition.token_ids)

    def restart(self, messages: list[Message]) -> None:
        """Begin another sequence with a prompt of its own."""
        self._messages = list(messages)
        self.sequences.append(TokenSequence(self._renderer.render_prompt(messages)))

    def _as_messages(self, texts: list[str]) -> list[Message]:
        said = self._renderer.said_text(self._sampled_last())
        return [{"role": "assistant", "content": said}, *({"role": "tool", "content": text} for text in texts)]

    def _sampled_last(self) -> list[int]:
        """Tokens of the last turn, without the one that ends it."""
        token_ids, mask = self.sequence.token_ids.tolist(), self.sequence.loss_mask.tolist()
        end = len(token_ids) - self.is_closed
        start = end
        while start and mask[start - 1]:
            start -= 1
        return token_ids[start:end]
