"""A DSPy program that is trained through a service; runs in an environment with dspy, without Turnwise's.

    python dspy_client.py train API_BASE MODEL PROVIDER ADAPTER NUM_STEPS
    python dspy_client.py demonstrate FILE

PROVIDER is `dspy` (its own ArborProvider), `arbor` (arbor-ai's) or `turnwise`; ADAPTER `default`, `chat` or `xml`.
`demonstrate` writes conversations in the form of each adapter, for a cold start.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import random
import sys
import types

import dspy

COLOURS = ("red", "green", "blue", "yellow")


class Hops(dspy.Module):
    """Two predictors in turn, as in the tutorial on multi-hop search."""

    def __init__(self):
        super().__init__()
        self.query = dspy.Predict("claim, notes: list[str] -> query")
        self.note = dspy.Predict("claim, query -> titles: list[str], verdict: bool")

    def forward(self, claim):
        query = self.query(claim=claim, notes=["none"]).query
        found = self.note(claim=claim, query=query)
        return dspy.Prediction(query=query, titles=found.titles)


def metric(example, prediction, trace=None):
    return len(str(prediction.query)) % 7 / 7


def provider_of(name):
    if name == "turnwise":
        from rl.integrations.dspy import TurnwiseProvider

        return TurnwiseProvider()
    if name == "dspy":
        from dspy.clients.lm_local_arbor import ArborProvider

        return ArborProvider()
    return arbor_client().ArborProvider()


@functools.cache
def arbor_client():
    """arbor-ai's client without its server, which imports GPU libraries."""
    spec = importlib.util.find_spec("arbor")
    package = types.ModuleType("arbor")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["arbor"] = package
    import arbor.integrations.dspy

    return arbor.integrations.dspy


def demonstrate(path):
    rng, lines = random.Random(0), []
    adapters = [dspy.ChatAdapter(), *([dspy.XMLAdapter()] if hasattr(dspy, "XMLAdapter") else [])]
    program = Hops()
    for _ in range(48):
        colour, claim = rng.choice(COLOURS), f"Claim number {rng.randrange(4)}."
        calls = [
            (program.query.signature, {"claim": claim, "notes": ["none"]}, {"query": colour}),
            (program.note.signature, {"claim": claim, "query": colour}, {"titles": [colour], "verdict": True}),
        ]
        for adapter in adapters:
            for signature, inputs, outputs in calls:
                messages = adapter.format(signature=signature, demos=[], inputs=inputs)
                answer = adapter.format_assistant_message_content(signature, outputs).strip()
                end = "\n\n[[ ## completed ## ]]" if "[[" in answer and "completed" not in answer else ""
                messages.append({"role": "assistant", "content": answer + end})
                lines.append(json.dumps({"messages": messages, "ground_truth": colour, "data_source": "dspy"}))
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")


def train(api_base, model, provider, adapter, num_steps):
    logging.getLogger("dspy").setLevel(logging.ERROR)
    sampling = {"temperature": 1.0, "max_tokens": 200}
    extra = {"top_k": -1, "top_p": 1.0, "repetition_penalty": 1.0}
    options = {**sampling, **extra} if provider == "arbor" else sampling
    lm = dspy.LM(
        f"openai/arbor:{model}",
        provider=provider_of(provider),
        api_base=api_base,
        api_key="none",
        cache=False,
        **options,
    )
    adapters = {"default": lambda: None, "chat": dspy.ChatAdapter, "xml": lambda: dspy.XMLAdapter()}
    chosen = adapters[adapter]()
    dspy.configure(lm=lm, adapter=chosen)
    program = Hops()
    program.set_lm(lm)
    trainset = [dspy.Example(claim=f"Claim number {i}.").with_inputs("claim") for i in range(4)]
    common = {"num_threads": 4, "num_train_steps": num_steps, "num_dspy_examples_per_grpo_step": 2}
    kwargs = {"temperature": 1.0, "beta": 0.0, "learning_rate": 1e-4, "per_device_train_batch_size": 16}
    kwargs |= {"max_steps": 50, "warmup_steps": 0, "update_interval": 2}  # each version sends those it knows
    if provider == "arbor":
        optimizer, kwargs = arbor_client().ArborGRPO, {**kwargs, **extra, "gradient_checkpointing": False}
        common["checkpoint"] = "single-best"
    else:
        from dspy.teleprompt.grpo import GRPO as optimizer
    grpo = optimizer(
        metric=metric, train_kwargs=kwargs, num_rollouts_per_grpo_step=4, num_steps_for_val=2, use_train_as_val=True,
        report_train_scores=True, exclude_demos=True, **common,
    )  # fmt: skip
    before = lm.model
    grpo.compile(student=program, trainset=trainset)
    print(json.dumps({"dspy": dspy.__version__, "model_before": before, "model_after": lm.model}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    demonstrate(*arguments) if command == "demonstrate" else train(*arguments[:-1], int(arguments[-1]))
