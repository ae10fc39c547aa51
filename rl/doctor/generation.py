"""Two tokens of the real engine, and their log-probs by the actor: a child process of `rl doctor`.

`python -m rl.doctor.generation CONFIG` reads a pickled configuration and writes its result as the last line, JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.config.device import runs_on_cuda
from rl.config.schema import Config
from rl.inference.environment import engine_environment
from rl.types import Sampling, TokenSequence

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
MARK = "turnwise doctor: "
_NUM_TOKENS = 2


@dataclass(slots=True)
class Generated:
    """What the engine sampled."""

    start_s: float
    """Seconds until the engine had loaded the model."""
    generate_s: float
    text: str
    num_tokens: int
    difference: float | None
    """Largest difference between the engine's log-probs and the actor's; None if they were not compared."""


def engine_variables(config: Config, sockets: Path) -> dict[str, str]:
    """Environment variables of the child process."""
    cores = () if runs_on_cuda(config) else tuple(sorted(os.sched_getaffinity(0)))
    return engine_environment(config, cores, sockets) | {"VLLM_LOGGING_LEVEL": "ERROR"}


def main(path: Path) -> None:
    """Generate, compare, and write the result."""
    config: Config = pickle.loads(path.read_bytes())
    found, sequence = asyncio.run(_generate(config))
    if config.actor_config.tensor_model_parallel_size * config.actor_config.pipeline_model_parallel_size == 1:
        found.difference = _difference(config, sequence)
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(found))}\n")


async def _generate(config: Config) -> tuple[Generated, TokenSequence]:
    from rl.inference.engine import VllmEngine
    from rl.rollout.dialog import load_dialog

    renderer = load_dialog(config).renderer
    sequence = TokenSequence(renderer.render_prompt(QUESTION))
    start = time.monotonic()
    engine = await VllmEngine.create(
        config,
        model_folder=Path(config.actor_config.load),
        replica=0,
        seed=config.megatron_training.seed,
        stop_token_ids=renderer.end_of_turn_ids,
    )
    try:
        started = time.monotonic()
        temperature = config.generate_config.sampling_config.temperature
        sampling = Sampling(temperature, max_tokens=_NUM_TOKENS, seed=1)
        given = await engine.generate(sequence.token_ids.tolist(), sampling, session_id="doctor")
        ended = time.monotonic()
    finally:
        await engine.shutdown()
    sequence.append_sampled(given.token_ids, given.logprobs, given.policy_version)
    text = renderer.decode(given.token_ids)
    return Generated(started - start, ended - started, text, len(given.token_ids), None), sequence


def _difference(config: Config, sequence: TokenSequence) -> float:
    """Largest difference between the engine's log-probs and the actor's."""
    from rl.batch.layout import packing_layout
    from rl.batch.packing import pack_samples
    from rl.batches import Sample
    from rl.training.loading import actor_class

    row = Sample("doctor/0", "doctor", sequence.token_ids, sequence.loss_mask, None, sequence.logprobs)
    layout = packing_layout(config, num_data_parallel=1)
    with actor_class()(config, loss="reference", num_threads=len(os.sched_getaffinity(0))) as actor:
        micros = pack_samples([row], layout).mini_batches[0].micro_batches[0]
        pairs = list(zip(micros, actor.compute_logprobs(micros), strict=True))
    return max(float((own - m.rollout_logprobs)[m.loss_mask > 0].abs().max()) for m, own in pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
