"""One rank of the trained policy, or with `loss="reference"` of its frozen initial model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from rl.batch.rank_batch import RankBatch
from rl.batches import MicroBatch, RowAdvantages, RunPlace, Sample, Share, TokenColumns
from rl.config.schema import Config
from rl.observability.token_records import rank_file, write_trained_rows
from rl.training.checkpoint import load_checkpoint, save_checkpoint
from rl.training.device import setup_device
from rl.training.hf_files import read_source_files
from rl.training.hf_weights import export_hf_weights, load_hf_weights
from rl.training.model import build_model, load_hf_config
from rl.training.objective import Objective
from rl.training.offload import HostStash
from rl.training.optimizer import PolicyOptimizer, wrap_chunks
from rl.training.parallel import ParallelState, destroy_parallel, init_parallel, virtual_pipeline_size
from rl.training.profiler import RankProfiler
from rl.training.step import accumulate_gradients, compute_logprobs
from rl.weight_sync.shared_memory import Shard, publish

logger = logging.getLogger(__name__)


class Actor:
    """One rank of the actor (`rl.interfaces.Actor`), usable from a script, alone or under torchrun.

    Call every method on all ranks. Rank order is tensor, then data, then pipeline; `parallel.dp_rank` selects the share
    of a mini-batch.

    Example, in one process:

        with Actor(config) as actor:
            for mini_batch in pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches:
                print(actor.update(mini_batch.micro_batches[0]))

    Args:
        config: The run's configuration; the model comes from `actor_config.load`.
        rank: This process's rank in the actor.
        world_size: Processes of the actor; divided by the tensor and pipeline sizes, the data-parallel size.
        init_method: Where the ranks meet: `tcp://host:port`, `env://` under torchrun; None for a single process.
        loss: `policy` as the configuration says, `sft` for demonstrations, `reference` for log-probs only.
        num_threads: Threads of CPU operators; None keeps torch's default.
        device_index: Index among the CUDA devices that this process sees.
        num_steps: Steps over which the learning rate decays, if `update` gets no `place`; None: `train_iters`.
        parallel: Process groups to share with another model in this process; None: its own.

    Raises:
        ModelError: The model folder is missing, corrupt, not supported, or cannot be split as configured.
        ConfigError: The device or the parallel sizes are impossible.
    """

    def __init__(
        self,
        config: Config,
        *,
        rank: int = 0,
        world_size: int = 1,
        init_method: str | None = None,
        loss: Literal["policy", "sft", "reference"] = "policy",
        num_threads: int | None = None,
        device_index: int = 0,
        num_steps: int | None = None,
        parallel: ParallelState | None = None,
    ) -> None:
        self.config = config
        self.loss = loss
        self.model_folder = Path(config.actor_config.load)
        hf_config = load_hf_config(self.model_folder)
        device = setup_device(config.megatron_training.device, num_threads=num_threads, index=device_index)
        self._owns_groups = parallel is None
        self.parallel = parallel or init_parallel(
            rank=rank,
            world_size=world_size,
            tp=config.actor_config.tensor_model_parallel_size,
            pp=config.actor_config.pipeline_model_parallel_size,
            vpp=virtual_pipeline_size(config.actor_config, hf_config.num_hidden_layers),
            init_method=init_method or _alone(world_size),
            device=device,
        )
        self.objective = Objective.of_sft() if loss == "sft" else Objective.of(config)
        self.chunks = build_model(hf_config, config=config, parallel=self.parallel)
        load_hf_weights(self.chunks, self.model_folder, self.parallel)
        is_writer = rank == 0 and loss != "reference"
        self.source = read_source_files(self.model_folder) if is_writer else {}
        self.optimizer: PolicyOptimizer | None = None
        if loss == "reference":
            for chunk in self.chunks:
                chunk.requires_grad_(False)
        else:
            self.chunks = wrap_chunks(self.chunks, config)
            if num_steps is None:
                num_steps = config.megatron_training.train_iters
            self.optimizer = PolicyOptimizer(self.chunks, config, self.parallel, num_steps=num_steps)
        self.broken_samples: list[int] = []
        """This rank's samples with a NaN or Inf in the last update, by number in the mini-batch."""
        self._columns: list[TokenColumns] = []
        """What the last update computed for each token, by micro-batch; on the last pipeline stage."""
        self._batch: RankBatch | None = None
        self._profiler: RankProfiler | None = None
        self._stash = HostStash()

    def __enter__(self) -> Actor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def compute_logprobs(self, micro_batches: list[MicroBatch]) -> list[Tensor]:
        """Log-probs of the sampled tokens under the current weights and the sampling temperature.

        Args:
            micro_batches: This data-parallel rank's, at most as many on the other ranks.

        Returns:
            [T] float32 on the CPU for each, 0 where `loss_mask` is 0; the same on the ranks that share them.
        """
        self.onload()
        return compute_logprobs(self.chunks, micro_batches, self.objective.temperature, self.parallel)

    def update(
        self, mini_batch: list[MicroBatch], *, place: RunPlace | None = None, kl_coef: float | None = None
    ) -> dict[str, float]:
        """One optimizer step.

        If the gradient norm is not finite, parameters and moments stay unchanged and `actor/skipped_steps` counts it;
        `broken_samples` then lists the samples with a NaN or Inf.

        Args:
            mini_batch: This data-parallel rank's micro-batches, at least one, as many on every rank.
            place: The run's step, whose learning rate is taken; by default each call is a step of its own, of
                `num_steps`.
            kl_coef: Weight of the KL term of this step; by default `rl_config.init_kl_coef`.

        Returns:
            Metrics of the whole mini-batch, the same on every rank: those of
            `rl.training.step.accumulate_gradients` (of `sft`: `actor/loss`, nats per token, `actor/entropy` and
            `actor/broken_tokens`), `actor/grad_norm` (before clipping), `actor/lr`, `actor/skipped_steps`.
        """
        assert self.optimizer is not None, "a reference has no optimizer"
        self.onload()
        self.optimizer.zero_grad()
        objective = self.objective if kl_coef is None else replace(self.objective, kl_coef=kl_coef)
        report = accumulate_gradients(self.chunks, mini_batch, objective, self.parallel)
        metrics, self.broken_samples, self._columns = report.metrics, report.broken_samples, report.columns
        result = self.optimizer.step(place)
        if result.is_skipped:
            logger.warning("optimizer step skipped: the gradient norm is %s", result.grad_norm)
        if self.loss == "sft":
            kept = {name: metrics[name] for name in ("actor/entropy", "actor/broken_tokens")}
            metrics = {"actor/loss": metrics["actor/pg_loss"]} | kept
        metrics["actor/grad_norm"] = result.grad_norm
        metrics["actor/lr"] = result.lr
        metrics["actor/skipped_steps"] = float(result.is_skipped)
        if self._profiler is not None:
            self._profiler.end_pass()
        return metrics

    @property
    def dp_rank(self) -> int:
        """Index of this rank's share of a batch."""
        return self.parallel.dp_rank

    def load_batch(self, share: Share, sources: Sequence[Sequence[Sample]]) -> None:
        """Pack this rank's part of a step's batch, and keep it until the next one.

        Args:
            share: From `rl.batch.plan.share_of`.
            sources: The lists that `share.sources` refers to.
        """
        self._batch = RankBatch(share, sources)

    def fill_old_logprobs(self) -> None:
        """Fill `old_logprobs` of the batch, under the current weights."""
        self.batch.fill("old_logprobs", self.compute_logprobs(self.batch.micro_batches))

    def batch_logprobs(self) -> list[Tensor]:
        """Log-probs of the batch under this model; see `compute_logprobs`."""
        return self.compute_logprobs(self.batch.micro_batches)

    def fill_ref_logprobs(self, values: Sequence[Tensor]) -> None:
        """Fill `ref_logprobs` of the batch from the reference's `batch_logprobs`."""
        self.batch.fill("ref_logprobs", values)

    def kl_sums(self) -> dict[int, float]:
        """On a reference: KL(policy || reference) of each row of the share, with the engine's log-probs, in nats."""
        self.batch.fill("ref_logprobs", self.batch_logprobs())
        return self.batch.kl_sums(self.config.rl_config.kl_penalty)

    def fill_loss(self, weights: Mapping[int, float], advantages: Mapping[int, RowAdvantages]) -> None:
        """Fill loss weights and advantages of the batch; see `rl.batch.rank_batch.RankBatch`."""
        self.batch.fill_loss(weights, advantages)

    def update_on(self, mini_batch: int, place: RunPlace, kl_coef: float) -> dict[str, float]:
        """One optimizer step on the mini-batch with this number; see `update`."""
        metrics = self.update(self.batch.mini_batches[mini_batch], place=place, kl_coef=kl_coef)
        if place.is_recorded:
            self.batch.keep_update(mini_batch, [columns.cpu() for columns in self._columns])
        self._columns = []
        return metrics

    def record_tokens(self, path: Path) -> str | None:
        """Write what the updates of the batch computed for its tokens, and their log-probs under the new weights.

        All ranks take part; one for each share of the batch writes, to `rl.observability.token_records.rank_file`.

        Args:
            path: The step's tokens file.

        Returns:
            Why they could not be written, if so.
        """
        new_logprobs = self.batch_logprobs()
        if not self.parallel.is_last_stage or self.parallel.tp_rank != 0:
            return None
        return write_trained_rows(rank_file(path, self.dp_rank), self.batch.trained_rows(new_logprobs))

    @property
    def batch(self) -> RankBatch:
        """The batch that `load_batch` packed."""
        assert self._batch is not None, "load_batch comes first"
        return self._batch

    def publish(self, directory: Path, version: int, with_checksum: bool) -> Shard | None:
        """Write this pipeline stage's weights to shared memory. All ranks take part; one per stage writes."""
        self._batch = None  # not needed while engines sample
        tensors = self.export_hf_weights()
        if not self.parallel.is_publisher:
            for _ in tensors:
                pass
            return None
        return publish(
            tensors,
            directory,
            version=version,
            shard=self.parallel.pp_rank,
            dtype=getattr(torch, self.config.generate_config.dtype),
            with_checksum=with_checksum,
        )

    def export_hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors of this pipeline stage under Hugging Face names, whole, possibly views of the parameters.

        A collective over the tensor-parallel group; every rank must exhaust the iterator.
        """
        self.onload()
        return export_hf_weights(self.chunks, self.parallel)

    def save_checkpoint(self, directory: Path) -> None:
        """Write a model folder with the optimizer's state beside it (`rl.training.checkpoint`).

        Args:
            directory: Empty or missing, on a file system that all ranks share. It appears atomically.

        Raises:
            CheckpointError: The folder is not empty.
        """
        assert self.optimizer is not None, "a reference has no optimizer"
        self.onload()
        save_checkpoint(directory, self.chunks, self.optimizer, self.parallel, source=self.source)

    def load_checkpoint(self, directory: Path) -> None:
        """Restore weights, main parameters, moments and schedule, saved under any layout.

        Args:
            directory: What `save_checkpoint` wrote.

        Raises:
            CheckpointError: It is missing or incomplete, or of another model.
        """
        assert self.optimizer is not None, "a reference has no optimizer"
        self.onload()
        load_checkpoint(directory, self.chunks, self.optimizer, self.parallel)

    def offload(self) -> None:
        """Move what `generate_config.offload_train_*` selects to the host; the next call that needs it restores it."""
        if not self._stash.is_empty:
            return
        offload = self.config.generate_config
        parameters = [p.data for chunk in self.chunks for p in chunk.parameters()]
        state, gradients = [], []
        if self.optimizer is not None:
            # In float32 a main parameter is a view of its parameter, and moves with it or stays with it.
            own = {p.untyped_storage().data_ptr() for p in parameters}
            state = [t for t in self.optimizer.state_tensors() if t.untyped_storage().data_ptr() not in own]
            gradients = [buffer.grad_data for chunk in self.chunks for buffer in chunk.buffers]
        self._stash.offload(
            [*(parameters if offload.offload_train_param else ()), *(state if offload.offload_train_optimizer else ())],
            discard=gradients if offload.offload_train_grad else (),  # the next update starts by zeroing them
        )
        torch.cuda.empty_cache()  # no-op on the CPU

    def onload(self) -> None:
        """Undo `offload`; no-op if nothing is on the host."""
        self._stash.restore()

    def start_profile(self) -> None:
        """Begin to profile what this rank does."""
        self._profiler = RankProfiler()

    def stop_profile(self, folder: Path, name: str) -> str | None:
        """Write the profile of this rank; see `rl.training.profiler`.

        Returns:
            Why it could not be written, if so.
        """
        assert self._profiler is not None, "start_profile comes first"
        profiler, self._profiler = self._profiler, None
        try:
            profiler.write(folder, name)
        except (OSError, RuntimeError) as error:
            return f"{folder / name}: the profile could not be written ({error}). Make room, or choose a shorter step."
        return None

    def shutdown(self) -> None:
        """Leave the process group."""
        self._stash.close()
        if self._owns_groups:
            destroy_parallel()


def _alone(world_size: int) -> str:
    """A meeting place for a single process."""
    assert world_size == 1, "several ranks need an init_method to meet at"
    return "tcp://127.0.0.1:0"  # any free port
