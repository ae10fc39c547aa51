"""The driver's work of one training step, with engines and actor ranks that answer immediately.

The training loop (`rl.train.train`), Ray, the rollout, reward and actor workers are real. Two parts are replaced: the
agent loop makes tokens from a seed, and an actor rank reads its data instead of computing.

Sizes are overrides: `num_prompts=512 samples=8 length=8192 ranks=4 engines=2 mini_batches=4`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray._private import internal_api
from ray._private.serialization import SerializationContext
from torch import Tensor

from rl import train as page
from rl.batches import MicroBatch
from rl.cluster.actors import ActorGroup
from rl.cluster.health import get_all
from rl.cluster.ranks import Rank, RayRanks
from rl.cluster.rollout_workers import RayWorkers
from rl.cluster.rollouts import RolloutGroup
from rl.cluster.workers import ActorWorker, RewardWorker, RolloutWorker, fetch_rows
from rl.config.estimates import object_store_bytes
from rl.config.load import load_config
from rl.config.schema import Config
from rl.inference.fake import FakeEngine
from rl.observability.busy_clock import BusyClock
from rl.observability.step_metrics import StepMetrics
from rl.run.run import Run
from rl.types import Prompt, Sampling, StopReason, TokenSequence, Trajectory, Turn
from tools.bench.figures import Figure, write_json

_GOAL_S = 2.0
_TIMEOUT_S = 1500.0
_STAGES = {
    "gen": "take",
    "adv": "plan and advantages",
    "old_log_prob": "old log-probs",
    "ref": "reference",
    "update_actor": "update",
}
"""Timers of the training loop, and their names here."""
_NOT_COUNTED = ("save_checkpoint", "evaluation")
_VOCABULARY = 49_000
_TEXT = "The sum of 17 and 25 is 42, so we go on. " * 4096


@dataclass(slots=True, frozen=True)
class Sizes:
    """Sizes of a step."""

    num_prompts: int = 512
    samples: int = 8
    """Trajectories of each prompt."""
    length: int = 8192
    """Mean tokens of a trajectory: an eighth is the prompt, an eighth the tool's result; +-50 %."""
    ranks: int = 4
    """Actor ranks, in tensor-parallel pairs."""
    engines: int = 2
    mini_batches: int = 4
    """Optimizer steps."""


# The replaced parts, each in an otherwise real worker.


class InstantLoop:
    """Returns a trajectory of random tokens immediately: a prompt, a turn, a tool's result and a turn."""

    def __init__(self, engine: FakeEngine, length: int) -> None:
        self._engine, self._length = engine, length

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        """See `rl.rollout.agent_loop.AgentLoop`."""
        number = int(prompt.extra["number"])
        prompt_length = self._length // 8
        random = np.random.default_rng([number, sample_index])
        total = int(self._length * (0.5 + random.random()))
        turn = max(1, (total - 2 * prompt_length) // 2)
        sequence = TokenSequence(np.random.default_rng(number).integers(_VOCABULARY, size=prompt_length).tolist())
        for k in range(2):
            token_ids, logprobs = random.integers(_VOCABULARY, size=turn).tolist(), (-random.random(turn)).tolist()
            sequence.append_sampled(token_ids, logprobs, self._engine.policy_version)
            if k == 0:
                sequence.append_context(random.integers(_VOCABULARY, size=prompt_length).tolist())
        text = _TEXT[: 4 * turn]
        answer = f"\\boxed{{{sample_index % 2}}}"  # half of a group is right, so that no group is dropped
        turns = [Turn(text=text, num_tokens=turn), Turn(text=text + answer, num_tokens=turn)]
        return Trajectory(prompt, sample_index, [sequence], turns, StopReason.FINISHED)


class InstantRollout(RolloutWorker.__ray_metadata__.modified_class):  # type: ignore[name-defined]
    """A rollout worker without an engine."""

    async def start(self) -> None:
        """Replaces vLLM and the agent loop."""
        self.engine = FakeEngine(lambda token_ids: [])
        self.engine.busy = BusyClock()  # type: ignore[attr-defined]
        self.toolbox = None
        self.loop = InstantLoop(self.engine, self.config.rl_config.max_total_response_length)


class InstantRank(ActorWorker.__ray_metadata__.modified_class):  # type: ignore[name-defined]
    """A rank of the actor without a model."""

    def start(self) -> None:
        """Replaces Megatron."""
        self.rank = Rank(_instant_actor(**self.placement), fetch_rows)


def _instant_actor(dp_rank: int) -> Any:
    """An actor that loads and packs its batch like the real one, but reads every value instead of computing."""
    from rl.training.actor import Actor  # loads Megatron, which the driver's process does not

    class InstantActor(Actor):
        def __init__(self) -> None:
            self._batch = None

        @property
        def dp_rank(self) -> int:
            return dp_rank

        def compute_logprobs(self, micro_batches: list[MicroBatch]) -> list[Tensor]:
            return [torch.full((micro.num_tokens,), _read(micro) * 0.0) for micro in micro_batches]

        def update(self, mini_batch: list[MicroBatch], **settings: Any) -> dict[str, float]:
            return {"actor/pg_loss": sum(map(_read, mini_batch)) * 0.0, "actor/grad_norm": 1.0, "actor/entropy": 1.0}

        def publish(self, directory: Path, version: int, with_checksum: bool) -> None:
            """There are no weights."""

        def save_checkpoint(self, directory: Path) -> None:
            """Nothing is trained."""

        def shutdown(self) -> None:
            """There is no process group."""

    return InstantActor()


def _read(micro: MicroBatch) -> float:
    values = (getattr(micro, field.name) for field in fields(micro))
    return float(sum(float(value.sum()) for value in values if value is not None))


# The measurements.


class Stages:
    """Wall and CPU seconds of this process by stage; an outer stage excludes its inner ones."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._inner: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the block to a stage."""
        wall, cpu = time.monotonic(), time.process_time()
        self._inner.append((0.0, 0.0))
        try:
            yield
        finally:
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            inner_wall, inner_cpu = self._inner.pop()
            self.wall[name] = self.wall.get(name, 0.0) + wall - inner_wall
            self.cpu[name] = self.cpu.get(name, 0.0) + cpu - inner_cpu
            if self._inner:
                outer_wall, outer_cpu = self._inner[-1]
                self._inner[-1] = (outer_wall + wall, outer_cpu + cpu)

    def follow_page(self) -> None:
        """Use the training loop's own timers."""
        stages, page_time = self, StepMetrics.time

        @contextlib.contextmanager
        def both(metrics: StepMetrics, name: str) -> Iterator[None]:
            with stages.time(_STAGES.get(name, name)), page_time(metrics, name):
                yield

        StepMetrics.time = both  # type: ignore[assignment, method-assign]


class Traffic:
    """Bytes that this process writes into Ray and reads from it, and what the object store holds."""

    def __init__(self) -> None:
        self.written = self.read = self.peak_store = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Traffic:
        self._start = self._stats()
        serialize, deserialize = SerializationContext.serialize, SerializationContext.deserialize_objects

        def counted(context: SerializationContext, value: Any, *args: Any) -> Any:
            serialized = serialize(context, value, *args)
            self.written += serialized.total_bytes
            return serialized

        def counted_read(context: SerializationContext, objects: Sequence[Any], *args: Any) -> Any:
            self.read += sum(len(one[0]) for one in objects if one[0] is not None)
            return deserialize(context, objects, *args)

        SerializationContext.serialize, SerializationContext.deserialize_objects = counted, counted_read
        self._originals = serialize, deserialize
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        SerializationContext.serialize, SerializationContext.deserialize_objects = self._originals
        end = self._stats()
        self.created = end.cumulative_created_bytes - self._start.cumulative_created_bytes
        self.spilled = end.spilled_bytes_total - self._start.spilled_bytes_total

    def _poll(self) -> None:
        while not self._ended.wait(0.5):
            self.peak_store = max(self.peak_store, self._stats().object_store_bytes_used)

    @staticmethod
    def _stats() -> Any:
        address = ray.get_runtime_context().gcs_address
        return internal_api.get_memory_info_reply(internal_api.get_state_from_address(address)).store_stats


def measure(config_name: str, sizes: Sizes, overrides: list[str]) -> list[Figure]:
    """One step after a warm-up of all workers.

    Returns:
        CPU and wall seconds of the driver in the step and in each of its stages, bytes and memory.
    """
    with tempfile.TemporaryDirectory(prefix="turnwise-bench-") as directory:
        config = load_config(config_name, [*_overrides(sizes, Path(directory)), *overrides])
        ray.init(
            address="local", num_cpus=64, object_store_memory=object_store_bytes(config), log_to_driver=False,
            include_dashboard=False,
        )  # fmt: skip
        try:
            actor, rollouts = _start(config, sizes, Path(directory))
            with Run.open(config, "driver") as run, Traffic() as traffic:
                stages = Stages()
                stages.follow_page()
                start, cpu = time.monotonic(), time.process_time()
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
                page.train(config, run, actor, rollouts, [])
                total = time.monotonic() - start, time.process_time() - cpu
                peak = _peak_resident_bytes()
            num_tokens = run._tokens
        finally:
            ray.shutdown()
    return _figures(sizes, num_tokens, stages, total, traffic, peak)


def _overrides(sizes: Sizes, directory: Path) -> list[str]:
    tokens = 2 * sizes.length
    return [
        f"megatron_training.output_dir={directory}", "megatron_training.run_name=run",
        "megatron_training.train_iters=1", f"megatron_training.global_batch_size={sizes.num_prompts}",
        "megatron_training.eval_before_train=false", "megatron_training.eval_after_train=false",
        "megatron_training.trackers=[]",
        f"rl_config.n_samples_per_prompt={sizes.samples}", f"rl_config.max_packing_token_size={tokens}",
        f"rl_config.mini_batch_size={-(-sizes.num_prompts // sizes.mini_batches)}",
        f"rl_config.max_prompt_length={tokens}", f"rl_config.max_total_response_length={sizes.length}",
        f"rl_config.actor_resource.num_devices={sizes.ranks}", "actor_config.tensor_model_parallel_size=2",
        "rl_config.share_prompt_prefix=false", "rl_config.filter_groups_enable=true",
        "rl_config.verifier_function=[gsm8k_boxed]", "rl_config.verifier_weight=[1.0]",
        "rl_config.verifier_kwargs={reasoning_gym: null}",
        f"generate_config.max_model_len={tokens}", "generate_config.max_num_seqs=64",
    ]  # fmt: skip


def _start(config: Config, sizes: Sizes, directory: Path) -> tuple[ActorGroup, RolloutGroup]:
    """Start the workers and run each once."""
    node = ray.get_runtime_context().get_node_id()
    logs = directory / "logs"
    reward = RewardWorker.options(max_concurrency=100_000).remote(config, log_file=logs / "reward.log")  # type: ignore[attr-defined]
    workers = [
        ray.remote(InstantRollout)
        .options(max_concurrency=100_000)
        .remote(
            config, log_file=logs / f"rollout-{i}.log", replica=i, model_folder=directory, socket_folder=directory,
            reward_workers=[reward], tool_overrides={},
        )
        for i in range(sizes.engines)
    ]  # fmt: skip
    tp = config.actor_config.tensor_model_parallel_size
    ranks = [
        ray.remote(InstantRank).remote(config, log_file=logs / f"actor-{i}.log", dp_rank=i // tp)
        for i in range(sizes.ranks)
    ]
    starts = [worker.start.remote() for worker in (reward, *workers, *ranks)]
    get_all(starts, what="the workers' start", timeout_s=_TIMEOUT_S)
    prompts = [_prompt(number, sizes.length) for number in range(sizes.num_prompts)]
    nodes = [node] * sizes.engines
    rollouts = RolloutGroup(RayWorkers(workers, config, nodes=nodes, rewards=[reward]), prompts, config)
    rollouts.evaluate(prompts[: sizes.engines], Sampling(temperature=1.0, max_tokens=1))
    return ActorGroup(RayRanks(ranks), None, config, directory, nodes=[node] * sizes.ranks), rollouts


def _prompt(number: int, length: int) -> Prompt:
    messages = [{"role": "user", "content": f"{number}: {_TEXT[: length // 2]}"}]
    return Prompt(f"bench-{number}", messages, "1", "bench", {"number": number})


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _figures(
    sizes: Sizes, num_tokens: float, stages: Stages, total: tuple[float, float], traffic: Traffic, peak: int
) -> list[Figure]:
    wall, cpu = total
    for name in _NOT_COUNTED:
        wall, cpu = wall - stages.wall.pop(name, 0.0), cpu - stages.cpu.pop(name, 0.0)
    stages.wall["metrics and files"] = wall - sum(stages.wall.values())
    stages.cpu["metrics and files"] = cpu - sum(stages.cpu.values())
    rows = sizes.num_prompts * sizes.samples
    detail = f"{rows} trajectories, {num_tokens / 1e6:.2f} M tokens, {wall:.1f} s with what the workers take"
    gigabyte = 1e9
    moved = traffic.read + traffic.written
    return [
        Figure("driver", cpu, "s CPU", _GOAL_S, at_least=False, detail=detail),
        *(
            Figure(f"driver, {name}", stages.cpu[name], "s CPU", detail=f"{stages.wall[name]:.2f} s wall")
            for name in stages.wall
        ),
        Figure(
            "bytes through the driver", moved / gigabyte, "GB",
            detail=f"read {traffic.read / gigabyte:.2f}, written {traffic.written / gigabyte:.2f} GB, "
            f"{moved / max(num_tokens, 1):.1f} bytes a token",
        ),
        Figure("driver's memory", peak / gigabyte, "GB", detail="peak resident set, mapped objects included"),
        Figure(
            "object store", traffic.peak_store / gigabyte, "GB",
            detail=f"peak; {traffic.created / gigabyte:.2f} GB made, {traffic.spilled / gigabyte:.2f} GB spilled",
        ),
    ]  # fmt: skip


def _read_sizes(overrides: list[str]) -> tuple[Sizes, list[str]]:
    """Split the sizes of this benchmark from the overrides of the configuration."""
    names = {field.name for field in fields(Sizes)}
    given = dict(text.split("=", 1) for text in overrides if text.split("=", 1)[0] in names)
    rest = [text for text in overrides if text.split("=", 1)[0] not in names]
    return Sizes(**{name: int(value) for name, value in given.items()}), rest


if __name__ == "__main__":
    name, output, *extra = sys.argv[1:]
    wanted, others = _read_sizes(extra)
    write_json(measure(name, wanted, others), Path(output))
