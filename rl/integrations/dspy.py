"""DSPy's optimizers on a Turnwise service, for dspy 3.1 and later, which has no provider of its own.

    lm = dspy.LM("openai/SmolLM2-135M-Instruct", provider=TurnwiseProvider(), api_base="http://127.0.0.1:7453/v1/",
                 api_key="none", temperature=1.0)

It needs dspy and nothing else of Turnwise. docs/dspy.md shows a whole program.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from rl.errors import ServiceError

try:
    from dspy.clients.provider import Provider, ReinforceJob
except ImportError as error:
    raise ImportError("rl.integrations.dspy: needs dspy 3.1 or later. Run `pip install 'dspy>=3.1'`.") from error

_TIMEOUT_S = 4 * 3600.0
"""The last update and the checkpoint are part of `terminate`."""


class TurnwiseJob(ReinforceJob):
    """A training on the service, as DSPy's GRPO leads it.

    Attributes:
        checkpoints: Hugging Face folders on the service's machine, by name, with the score that was given.
        metrics: How the service matched the samples so far; `serve/trained_as_sampled` is the share of those that are
            trained on, with the tokens that were sampled.
    """

    def __init__(self, lm: Any, train_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(lm=lm, train_kwargs=train_kwargs)
        self.metrics: dict[str, float] = {}
        self._job_id: str | None = None

    def initialize(self) -> None:
        """Begin the training, with all of `train_kwargs`; the service refuses what it cannot honour."""
        model = _without_prefix(self.lm.model)
        reply = self._post("initialize", model=model, suffix="dspy", trainer_config=self.train_kwargs)
        self._job_id = reply["job_id"]

    def get_status(self) -> dict[str, Any]:
        """The state of the training, with `pending_batch_ids`: one for each group that is wanted now."""
        return self._post("status")

    def step(self, train_data: list[Any], train_data_format: Any = None) -> None:
        """Send groups: `{"batch_id": ..., "group": [...]}` each."""
        for item in train_data:
            self._post("step", batch_id=item["batch_id"], batch=item["group"])

    def save_checkpoint(self, checkpoint_name: str, score: float | None = None) -> None:
        """Save the weights as a Hugging Face folder."""
        reply = self._post("checkpoint", checkpoint_name=checkpoint_name)
        self.last_checkpoint = reply["last_checkpoint"]
        self.checkpoints[checkpoint_name] = {"model_path": reply["checkpoints"][checkpoint_name], "score": score}

    def terminate(self) -> None:
        """Train on what is left, save and end. The service goes on to serve the model."""
        self._post("terminate")

    def cancel(self) -> None:
        """End without another update."""
        self._post("cancel")

    def status(self) -> Any:
        """The state of the training in one word."""
        return self.get_status()["status"]

    def _post(self, route: str, **body: Any) -> dict[str, Any]:
        if self._job_id is not None:
            body["job_id"] = self._job_id
        url = f"{self.lm.kwargs['api_base'].rstrip('/')}/fine_tuning/grpo/{route}"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.lm.kwargs.get('api_key') or ''}"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                reply: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise ServiceError(f"{route}: {_message(error)}") from None
        except OSError as error:
            raise ServiceError(f"{route}: no answer from {url} ({error}). Is `rl serve` running there?") from error
        self.metrics = reply.get("metrics", {})
        return reply


class TurnwiseProvider(Provider):
    """Lets `dspy.LM(..., provider=TurnwiseProvider())` be trained by a Turnwise service."""

    def __init__(self) -> None:
        super().__init__()
        self.reinforceable = True
        self.ReinforceJob = TurnwiseJob

    @staticmethod
    def launch(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing: the service serves the model as long as it runs."""

    @staticmethod
    def kill(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing, for the same reason."""


def _without_prefix(model: str) -> str:
    return model.removeprefix("openai/").removeprefix("arbor:")


def _message(error: urllib.error.HTTPError) -> str:
    """What the service says is wrong."""
    text = error.read().decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}: {text[:500]}"
