"""The order of memory when actor and engines share GPUs: the real launch, loop, actor and rollout groups, with workers
that keep a ledger of bytes instead of tensors, on a GPU as small as `rl validate` says it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl.batch.rank_batch import RankBatch
from rl.batches import RowAdvantages, RunPlace, Sample, Share
from rl.cluster import launch as module
from rl.cluster import ranks
from rl.cluster.launch import launch
from rl.cluster.nodes import Machine
from rl.cluster.placement import Placement, Process
from rl.cluster.rollout_workers import RayWorkers
from rl.config.device_memory import PROCESS_BYTES, DeviceMemory, device_memory
from rl.config.estimates import GIB, MemoryEstimate, memory_estimate
from rl.config.load import load_config
from rl.config.schema import Config, KlPenalty, ModelConfig
from rl.rollout.headers import header_of_group
from rl.run.run import Run
from rl.train import train
from rl.types import (
    BusySeconds,
    Group,
    Prompt,
    Sampling,
    Span,
    StopReason,
    TokenSequence,
    Trajectory,
    WeightUpdate,
)
from rl.weight_sync.shared_memory import Shard
from tests.unit.cluster.conftest import Method, Ref

QWEN25_7B = ModelConfig("qwen2", 28, 3584, 18944, 28, 4, None, 152064, False)


class OutOfMemory(Exception):
    pass


@dataclass
class Ledger:
    """The bytes on each device, by who has them."""

    size: float
    """Bytes of one device."""
    held: dict[int, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    """The most on any device, by what was going on."""

    def hold(self, event: str, device: int, **sizes: float) -> None:
        """Set what some have on a device; a difference that does not fit is told."""
        held = self.held.setdefault(device, {})
        held |= sizes
        total = sum(held.values())
        self.peaks[event] = max(self.peaks.get(event, 0.0), total)
        if total > self.size + 1:
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.items())
            raise OutOfMemory(f"{event}: {parts} of {self.size / GIB:.1f} GiB")


class Rank:
    """A rank of the actor or reference: moves its bytes as `rl.training.actor.Actor` does its tensors."""

    def __init__(self, ledger: Ledger, config: Config, estimate: MemoryEstimate, process: Process) -> None:
        self.ledger, self.config, self.process, self.estimate = ledger, config, process, estimate
        self.host_bytes = 0
        self.is_reference = process.role == "reference"
        self.call = Method(ranks.Rank(self, get).call)
        self.shutdown = Method(lambda: None)
        tp, pp = config.actor_config.tensor_model_parallel_size, config.actor_config.pipeline_model_parallel_size
        self.dp_rank = process.index // tp % (config.rl_config.actor_resource.num_devices // (tp * pp))
        self._hold("start")

    def onload(self) -> None:
        self._hold("onload")

    def _hold(self, event: str = "onload", activations: int = 0) -> None:
        e, role = self.estimate, self.process.role
        sizes = {"process": PROCESS_BYTES, "parameters": e.reference_bytes if self.is_reference else e.parameter_bytes}
        if not self.is_reference:
            sizes |= {"gradients": e.gradient_bytes, "optimizer": e.optimizer_bytes, "activations": activations}
        self.ledger.hold(event, self.process.devices[0], **{f"{role}'s {name}": size for name, size in sizes.items()})

    def offload(self) -> None:
        generate, role, e = self.config.generate_config, self.process.role, self.estimate
        left: dict[str, float] = {}
        if generate.offload_train_param:
            left["parameters"] = 0
            self.host_bytes = e.reference_bytes if self.is_reference else e.parameter_bytes
        if generate.offload_train_optimizer and not self.is_reference:
            left["optimizer"] = 0
            self.host_bytes += e.optimizer_bytes
        if generate.offload_train_grad and not self.is_reference:
            left["gradients"] = 0
        self.ledger.hold("offload", self.process.devices[0], **{f"{role}'s {name}": 0.0 for name in left})

    def load_batch(self, share: Share, sources: list[list[Sample]]) -> None:
        self.batch = RankBatch(share, sources)

    def batch_logprobs(self) -> list[torch.Tensor]:
        self._hold(f"{self.process.role}'s log-probs")
        return [torch.zeros(m.num_tokens) for m in self.batch.micro_batches]

    def fill_old_logprobs(self) -> None:
        self.batch.fill("old_logprobs", self.batch_logprobs())

    def fill_ref_logprobs(self, values: Ref) -> None:
        self.batch.fill("ref_logprobs", values.value)

    def kl_sums(self) -> dict[int, float]:
        self.batch.fill("ref_logprobs", self.batch_logprobs())
        return self.batch.kl_sums(KlPenalty.K1)

    def fill_loss(self, weights: dict[int, float], advantages: dict[int, RowAdvantages]) -> None:
        self.batch.fill_loss(weights, advantages)

    def update_on(self, mini_batch: int, place: RunPlace, kl_coef: float) -> dict[str, float]:
        self._hold("update", self.estimate.activation_bytes)
        self._hold("update")
        return {"actor/pg_loss": 0.0}

    def record_tokens(self, path: Path) -> str | None:
        self._hold("record")
        return None

    def publish(self, directory: Path, version: int, with_checksum: bool) -> Shard | None:
        self._hold("publish")
        return Shard(directory / f"weights-{self.process.index}", 0, "0f")

    def save_checkpoint(self, directory: Path) -> None:
        self._hold("checkpoint")

    def load_checkpoint(self, directory: Path) -> None:
        self._hold("resume")


def get(sources: list[Any]) -> list[Any]:
    return [source.value if isinstance(source, Ref) else source for source in sources]


class EngineWorker:
    """A rollout worker whose engine takes its share of the devices while it is awake."""

    def __init__(
        self, ledger: Ledger, config: Config, process: Process, scores: Callable[[Prompt], list[float]]
    ) -> None:
        self.ledger, self.config, self.process, self.scores = ledger, config, process, scores
        self.version: int | None = -1
        self.run_group = Method(self._run_group)
        self.restart_clocks = Method(lambda: BusySeconds(engine_s=0.0, reward_s=0.0))
        self.update_weights = Method(self._update_weights)
        self.sleep, self.shutdown = Method(self._sleep), Method(lambda: None)
        self._wake("start", -1)

    def _wake(self, event: str, version: int) -> None:
        share = self.config.generate_config.gpu_memory_utilization
        for device in self.process.devices:
            self.ledger.hold(event, device, engine=share * self.ledger.size)
        self.version = version

    def _update_weights(self, update: WeightUpdate) -> Span:
        self._wake("load weights", update.version)
        return Span("rollout 0", "update_weights", 0.0, 1.0)

    def _sleep(self) -> None:
        for device in self.process.devices:
            self.ledger.hold("sleep", device, engine=PROCESS_BYTES)
        self.version = None

    def _run_group(
        self, prompt: Prompt, num_samples: int, sampling: Sampling, keeps_rows: bool
    ) -> tuple[Ref, Ref, Ref]:
        assert self.version is not None and self.version >= 0, "asked while it sleeps, or before the first publish"
        self._wake("evaluation" if sampling.temperature == 0 else "sampling", self.version)
        group = Group(prompt, [])
        for number, score in zip(range(num_samples), self.scores(prompt), strict=False):
            sequence = TokenSequence([1, 2])
            sequence.append_sampled([3, 4], [-1.0, -1.0], self.version)
            group.trajectories.append(Trajectory(prompt, number, [sequence], [], StopReason.FINISHED, score=score))
        header = header_of_group(group)
        return Ref((header.trajectories, header.prompt_ids)), Ref(header.rows), Ref(header.record)


class OneMachine:
    """`Nodes` without Ray."""

    def __init__(self, layout: Placement, machines: list[Machine]) -> None:
        self.layout = layout

    def node_of(self, process: Process) -> str:
        return "here"


@dataclass
class Setting:
    """A run of three steps; the second learns nothing, and an evaluation and a checkpoint come after it."""

    config: Config
    need: DeviceMemory
    ledger: Ledger
    ranks: list[Rank] = field(default_factory=list)
    versions: list[int | None] = field(default_factory=list)

    def run(self, prompts: list[Prompt], **changes: Any) -> Run:
        for key, value in changes.items():
            setattr(self.config.megatron_training, key, value)
        self.ledger.held.clear()
        self.ranks.clear()
        with (
            Run.open(self.config, "memory") as run,
            launch(self.config, log_directory=run.directory.logs, prompts=prompts) as cluster,
        ):
            assert cluster.actor is not None and cluster.rollouts is not None
            train(self.config, run, cluster.actor, cluster.rollouts, [Prompt("question", [], "", "test")])
        return run


def make_config(output: Path, **generate: Any) -> Config:
    config = load_config(
        "dapo_qwen25_7b_multi_turn", ["megatron_training.device=cuda", "megatron_training.trackers=[]"]
    )
    training, rl = config.megatron_training, config.rl_config
    training.output_dir, training.eval_data_path = str(output), {"questions": "questions.jsonl"}
    training.global_batch_size, training.train_iters, rl.mini_batch_size = 2, 3, 1
    training.eval_interval = training.save_interval = 2
    rl.n_samples_per_prompt = 2
    for key, value in generate.items():
        setattr(config.generate_config, key, value)
    return config


@pytest.fixture
def prompts() -> list[Prompt]:
    return [Prompt(f"p{i}", [], "", "test") for i in range(8)]


@pytest.fixture
def make_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Setting]]:
    def make(*, kl_coef: float = 0.0, in_reward: bool = False, shrink: float = 1.0, **generate: Any) -> Setting:
        config = make_config(tmp_path / "runs", **generate)
        config.rl_config.init_kl_coef, config.rl_config.use_kl_in_reward = kl_coef, in_reward
        need, estimate = device_memory(config, QWEN25_7B), memory_estimate(config, QWEN25_7B)
        setting = Setting(config, need, Ledger(need.smallest_device_bytes * shrink))
        asked = [0]

        def scores(prompt: Prompt) -> list[float]:
            asked[0] += prompt.id != "question"
            return [1.0, 1.0] if asked[0] in (3, 4) else [1.0, 0.0]  # the second step

        def start_rollouts(site: Any, *args: Any) -> tuple[RayWorkers, dict]:
            processes = site.layout.rollouts
            workers = [EngineWorker(setting.ledger, config, process, scores) for process in processes]
            writer = SimpleNamespace(write=Method(lambda *args: None))
            return RayWorkers(workers, config, nodes=["here"] * len(workers), rewards=[writer]), {}

        def start_ranks(site: Any, processes: tuple[Process, ...], **kwargs: Any) -> tuple[list[Rank], dict]:
            ranks = [Rank(setting.ledger, config, estimate, process) for process in processes]
            setting.ranks += ranks
            return ranks, {}

        monkeypatch.setattr(module, "_ray", lambda *args: nullcontext())
        monkeypatch.setattr(module, "embedded_services", lambda config: nullcontext({}))
        monkeypatch.setattr(module, "machines", lambda: [Machine("here", (0,))])
        monkeypatch.setattr(module, "Nodes", OneMachine)
        monkeypatch.setattr(module, "shut_down", lambda workers: lambda *failure: None)
        monkeypatch.setattr(module, "start_rollouts", start_rollouts)
        monkeypatch.setattr(module, "_start_ranks", start_ranks)
        return setting

    yield make


def test_need_of_the_shipped_7b_by_hand(tmp_path: Path) -> None:
    """7,615 M parameters, tensor 2 x data 4, everything offloaded, engines of one device."""
    need = device_memory(make_config(tmp_path), QWEN25_7B)
    estimate = memory_estimate(make_config(tmp_path), QWEN25_7B)
    local = 7_615_487_488 // 2
    assert need.pinned_bytes == local * 2 + local * 12 // 4  # parameters in bfloat16, a quarter of three float32
    assert need.learning_bytes == local * 2 + local * 4 + local * 3 + estimate.activation_bytes + 2 * 2 * GIB
    assert need.resident_bytes == 2 * GIB  # the actor's process
    assert need.published_bytes == 7_615_487_488 * 2
    cache, sampler = 4096 * 2 * 28 * 4 * 128 * 2, 3 * 4 * 152064 * 1024
    assert need.engine_bytes == 7_615_487_488 * 2 + cache + sampler + 2 * GIB
    assert need.smallest_device_bytes == need.learning_bytes < 80e9


def test_smallest_device_is_decided_by_the_tightest_phase() -> None:
    need = DeviceMemory(60, 10, 20, 0.5, 0, 0)
    assert need.smallest_device_bytes == 60
    assert DeviceMemory(60, 40, 20, 0.5, 0, 0).smallest_device_bytes == 80  # half of it beside the engine
    assert DeviceMemory(60, 10, 20, 0.25, 0, 0).smallest_device_bytes == 80  # a quarter of it holds the engine
    assert DeviceMemory(60, 10, 20, 1.0, 0, 0).smallest_device_bytes == float("inf")
    assert DeviceMemory(60, 0, 0, 1.0, 0, 0).smallest_device_bytes == 60


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"gpu_memory_utilization": 0.85},
        {"kl_coef": 0.1},
        {"kl_coef": 0.1, "in_reward": True},
        {"offload_train_grad": False, "gpu_memory_utilization": 0.5},
        {"offload_train_param": False, "offload_train_optimizer": False, "offload_train_grad": False},
        {"infer_tensor_parallel_size": 2},
    ],
    ids=str,
)
def test_every_phase_fits_on_the_smallest_gpu_that_validate_names(
    make_setting: Callable[..., Setting], prompts: list[Prompt], case: dict[str, Any]
) -> None:
    setting = make_setting(**case)
    setting.run(prompts, run_name="first", train_iters=3)
    setting.run(
        prompts,
        run_name="second",
        train_iters=4,
        resume=str(Path(setting.config.megatron_training.output_dir) / "first"),
    )
    need, peaks = setting.need, setting.ledger.peaks
    assert set(peaks) >= {
        "start",
        "publish",
        "load weights",
        "sampling",
        "update",
        "evaluation",
        "checkpoint",
        "resume",
    }
    assert ("reference's log-probs" in peaks) == ("kl_coef" in case)
    assert peaks["update"] == need.learning_bytes
    awake = need.engine_share * setting.ledger.size + need.resident_bytes
    assert peaks["sampling"] == peaks["evaluation"] == pytest.approx(awake)
    assert max(peaks.values()) == pytest.approx(max(need.learning_bytes, awake))
    on_device_0 = [rank for rank in setting.ranks if rank.process.devices == (0,)]
    assert sum(rank.host_bytes for rank in on_device_0) == need.pinned_bytes


@pytest.mark.parametrize("case", [{}, {"offload_train_param": False, "offload_train_grad": False}], ids=str)
def test_a_gpu_that_is_any_smaller_is_too_small(
    make_setting: Callable[..., Setting], prompts: list[Prompt], case: dict[str, Any]
) -> None:
    setting = make_setting(shrink=0.99, **case)
    with pytest.raises(OutOfMemory):
        setting.run(prompts)
