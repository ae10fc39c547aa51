"""The tutorial with `rl serve`: recall on held-out claims, `dspy.GRPO`, and the recall again.

    <output>/before.jsonl, after.jsonl     every held-out claim with the program's notes, query, documents and recall
    <output>/results.json                  mean recalls with 95 % intervals, and times

Runs where dspy is installed; it needs nothing of Turnwise but `rl.integrations.dspy`.

Usage: python -m examples.dspy_multihop.train --data data/dspy_multihop --output runs/dspy_multihop/grpo ...
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt.grpo import GRPO

from examples.dspy_multihop.program import ResearchHop, load_claims, make_adapter, recall
from examples.dspy_multihop.search import open_index
from rl.integrations.dspy import TurnwiseProvider

FORMAT_FAILURE_SCORE = -0.1
"""With dspy's -1, a malformed answer would outweigh the differences in recall within its group."""


def make_lm(options: argparse.Namespace) -> dspy.LM:
    """The served model, trained by the service. Neither cached nor repeated: each answer has to be sampled."""
    return dspy.LM(
        f"openai/{served_model(options.api_base)}",
        provider=TurnwiseProvider(),
        api_base=options.api_base,
        api_key="none",
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        cache=False,
        num_retries=0,
    )


def served_model(api_base: str) -> str:
    """The name of the model that the service serves."""
    with urllib.request.urlopen(f"{api_base.rstrip('/')}/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


def evaluate(program: dspy.Module, claims: list[dspy.Example], num_threads: int, output: Path) -> list[float]:
    """Run the program on claims, greedily, and write what it did.

    Args:
        program: The program; it samples at temperature 0 meanwhile.
        claims: Held-out claims.
        num_threads: Claims at a time.
        output: File to write.

    Returns:
        Each claim's recall; 0 where an answer was malformed.
    """
    lm = program.get_lm()
    program.set_lm(lm.copy(temperature=0.0))
    evaluator = dspy.Evaluate(
        devset=claims,
        metric=recall,
        num_threads=num_threads,
        display_progress=False,
        max_errors=len(claims),
        provide_traceback=False,
    )
    results = evaluator(program).results
    program.set_lm(lm)
    rows = [
        {"claim": claim.claim, "titles": claim.titles, "recall": score, **prediction.toDict()}
        for claim, prediction, score in results
    ]
    output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [float(row["recall"]) for row in rows]


def optimize(program: dspy.Module, data: Path, options: argparse.Namespace) -> dspy.Module:
    """Train with `dspy.GRPO`, as in the tutorial."""
    compiler = GRPO(
        metric=recall,
        multitask=True,
        num_dspy_examples_per_grpo_step=options.examples,
        num_rollouts_per_grpo_step=options.rollouts,
        exclude_demos=True,
        num_train_steps=options.steps,
        num_threads=options.threads,
        num_steps_for_val=options.steps_for_val,
        seed=options.seed,
        format_failure_score=FORMAT_FAILURE_SCORE,
        train_kwargs={
            "temperature": options.temperature,
            "learning_rate": options.learning_rate,
            "beta": options.beta,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "scale_rewards": True,
            "max_steps": options.steps,
        },
    )
    trainset, valset = load_claims(data / "train.jsonl"), load_claims(data / "dev.jsonl")
    return compiler.compile(student=program, trainset=trainset, valset=valset[: options.val] or None)


def summarize(before: list[float], after: list[float]) -> dict[str, Any]:
    """Mean recalls with 95 % intervals of the normal approximation, and that of the paired differences."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    return {name: interval(values) for name, values in (("before", before), ("after", after), ("gain", differences))}


def interval(values: list[float]) -> dict[str, float]:
    """Mean, and the ends of its 95 % interval."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    """Parse the command line, evaluate, train, evaluate."""
    options = _parse()
    for name in ("dspy.utils.parallelizer", "dspy.clients.lm"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a malformed answer is a score here, not an error
    dspy.configure(adapter=make_adapter())
    options.output.mkdir(parents=True, exist_ok=True)
    predictor = dspy.ChainOfThought if options.chain_of_thought else dspy.Predict
    program = ResearchHop(open_index(options.data / "corpus.jsonl"), num_docs=4, num_hops=2, predictor=predictor)
    program.set_lm(make_lm(options))
    held_out = load_claims(options.data / "test.jsonl")[: options.test]
    times, marks = {}, [time.monotonic()]

    def mark(name: str) -> None:
        marks.append(time.monotonic())
        times[name] = round(marks[-1] - marks[-2], 1)

    before = evaluate(program, held_out, options.threads, options.output / "before.jsonl")
    mark("evaluation before")
    print(f"recall before: {interval(before)}", flush=True)
    program = optimize(program, options.data, options)
    mark("dspy.GRPO")
    after = evaluate(program, held_out, options.threads, options.output / "after.jsonl")
    mark("evaluation after")
    results = {"claims": len(held_out), **summarize(before, after), "seconds": times, "options": _plain(options)}
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/dspy_multihop"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--api-base", default="http://127.0.0.1:7453/v1/")
    parser.add_argument("--chain-of-thought", action="store_true", help="as in the tutorial; needs a larger model")
    parser.add_argument("--max-tokens", type=int, default=48, help="per answer")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--examples", type=int, default=6, help="claims per step")
    parser.add_argument("--rollouts", type=int, default=8, help="runs of the program per claim")
    parser.add_argument("--learning-rate", type=float, default=4e-5)
    parser.add_argument("--beta", type=float, default=0.0, help="coefficient of the KL penalty")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--val", type=int, default=0, help="claims of dev.jsonl that dspy.GRPO validates with")
    parser.add_argument("--steps-for-val", type=int, default=10)
    parser.add_argument("--test", type=int, default=200, help="held-out claims before and after")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
