"""The driver's side of the actor: its ranks and the reference's, called together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rl.algorithms.kl import KlCoefficient, kl_of_samples
from rl.batch.packing import pack_samples, packing_layout
from rl.batch.samples import sampled_rows
from rl.cluster.health import get_all
from rl.cluster.turns import Turns
from rl.config.model_folder import KL_FILE
from rl.config.schema import Config
from rl.types import Batch, Group, MicroBatch, MiniBatch, RunPlace, UpdateReport, WeightUpdate
from rl.weight_sync.plan import join_checksums

_UPDATE_TIMEOUT_S = 3600.0
_PUBLISH_TIMEOUT_S = 600.0


class ActorGroup:
    """All ranks of the actor and, where a KL term needs one, of the reference.

    Args:
        actors: Handles in order of rank.
        references: Handles in order of rank, or none.
        config: The run's configuration.
        shard_directory: Folder in shared memory for published weights.
        nodes: Ray's id of each actor's node.
    """

    def __init__(
        self,
        actors: list[Any],
        references: list[Any],
        config: Config,
        shard_directory: Path,
        *,
        nodes: Sequence[str],
    ) -> None:
        self.actors, self.references, self.config = actors, references, config
        self.shard_directory, self.nodes = shard_directory, nodes
        self.turns: Turns | None = None
        """With engines on the same accelerators."""
        actor = config.actor_config
        self.model_parallel = actor.tensor_model_parallel_size * actor.pipeline_model_parallel_size
        self.num_publishes = 0
        self.kl = KlCoefficient.of(config.rl_config)

    @property
    def num_data_parallel(self) -> int:
        """Ranks that train on different samples."""
        return len(self.actors) // self.model_parallel

    def add_kl_penalty(self, groups: list[Group]) -> dict[str, float]:
        """Fill in `kl_penalty` of the scored trajectories, where the KL term is in the reward; else do nothing.

        kl_penalty = coefficient * sum over the sampled tokens of the estimate of KL(policy || reference). The policy's
        log-probs are the engine's, of the very distribution that was sampled from.

        Args:
            groups: Scored; changed in place.

        Returns:
            `actor/reward_kl_penalty`, the mean estimate per token, and `actor/reward_kl_penalty_coeff`.
        """
        rl = self.config.rl_config
        trajectories = {
            t.id: t for group in groups for t in group.trajectories if t.score is not None and t.num_sampled
        }
        if not (self.references and rl.use_kl_in_reward and trajectories):
            return {}
        self._begin_turn()
        layout = packing_layout(self.config, num_data_parallel=self.num_data_parallel)
        layout = replace(layout, mini_batch_prompts=len(groups), epochs=1)
        batch = pack_samples(sampled_rows(list(trajectories.values())), layout)
        self._fill(self.references, batch, "ref_logprobs")
        coefficient, total = self.kl.value, 0.0
        for mini_batch in batch.mini_batches:
            micro_batches = [micro for share in mini_batch.micro_batches for micro in share]
            for name, kl in zip(
                mini_batch.trajectory_ids,
                kl_of_samples(micro_batches, len(mini_batch.trajectory_ids), rl.kl_penalty).tolist(),
                strict=True,
            ):
                trajectories[name].kl_penalty += coefficient * kl
                total += kl
        mean = total / sum(t.num_sampled for t in trajectories.values())
        self.kl.observe(mean, len(trajectories))
        return {"actor/reward_kl_penalty": mean, "actor/reward_kl_penalty_coeff": coefficient}

    def add_old_logprobs(self, batch: Batch) -> Batch:
        """Fill in the log-probs of the policy as it is now, where an optimizer step comes before one that needs them.

        With one optimizer step for the batch they are the current ones, and the update takes those; with `bypass_mode`
        it takes the engine's.
        """
        self._begin_turn()
        if len(batch.mini_batches) > 1 and not self.config.rl_config.rollout_correction.bypass_mode:
            self._fill(self.actors, batch, "old_logprobs")
        return batch

    def add_ref_logprobs(self, batch: Batch) -> Batch:
        """Fill in the reference's log-probs, where the KL term is in the loss."""
        if self.references and not self.config.rl_config.use_kl_in_reward:
            self._begin_turn()
            self._fill(self.references, batch, "ref_logprobs")
        return batch

    def update(self, batch: Batch, place: RunPlace) -> UpdateReport:
        """One optimizer step for each mini-batch, all with the learning rate of the run's step.

        Metrics are averaged over the optimizer steps; counts are added up. Of a skipped one what is not finite is left
        out. `actor/entropy`, `actor/ppo_kl` and `actor/pg_clipfrac` are means here also where the loss is a sum over
        tokens by a constant.
        """
        self._begin_turn()
        totals: dict[str, list[float]] = {}
        offending: dict[str, None] = {}
        for mini_batch in batch.mini_batches:
            refs = [
                w.update.remote(self._share(mini_batch, rank), place, self.kl.value)
                for rank, w in enumerate(self.actors)
            ]
            metrics = get_all(refs, what="the actor's update", timeout_s=_UPDATE_TIMEOUT_S)[0]
            metrics |= {name: metrics[name] / mini_batch.loss_weight for name in _MEANS if name in metrics}
            for name, value in metrics.items():
                if math.isfinite(value):
                    totals.setdefault(name, []).append(value)
            if metrics.get("actor/skipped_steps"):
                offending |= dict.fromkeys(self._offending(mini_batch))
        combined = {name: _combine(name)(values) for name, values in totals.items()}
        if self.references and not self.config.rl_config.use_kl_in_reward:
            combined["actor/kl_coef"] = self.kl.value
            distinct = {id(mini): mini for mini in batch.mini_batches}.values()
            self.kl.observe(combined.get("actor/kl", self.kl.target), sum(m.num_trajectories for m in distinct))
        return UpdateReport(combined, list(offending))

    def publish(self, version: int) -> WeightUpdate:
        """Write the weights to shared memory, with a checksum the first time."""
        self._begin_turn()
        with_checksum = self.num_publishes == 0
        self.num_publishes += 1
        refs = [w.publish.remote(self.shard_directory, version, with_checksum) for w in self.actors]
        written = get_all(refs, what="publishing the actor's weights", timeout_s=_PUBLISH_TIMEOUT_S)
        places = [(node, shard) for node, shard in zip(self.nodes, written, strict=True) if shard]
        return WeightUpdate(
            version=version,
            paths=tuple(str(shard.path) for _, shard in places),
            checksum=join_checksums(shard.checksum for _, shard in places) if with_checksum else None,
            nodes=tuple(node for node, _ in places),
            num_bytes=tuple(shard.num_bytes for _, shard in places),
        )

    def save_checkpoint(self, directory: Path) -> None:
        """Write Hugging Face weights, the optimizer's state, and the weight of the KL term where it is steered."""
        self._begin_turn()
        self._call(self.actors, "save_checkpoint", directory, what="writing the actor's checkpoint")
        if self.kl.is_adaptive:
            (directory / KL_FILE).write_text(json.dumps({"value": self.kl.value}) + "\n", encoding="utf-8")

    def load_checkpoint(self, directory: Path) -> None:
        """Restore a checkpoint into the actor; the reference stays what `actor_config.load` is."""
        self._begin_turn()
        self._call(self.actors, "load_checkpoint", directory, what="reading the actor's checkpoint")
        if self.kl.is_adaptive and (directory / KL_FILE).is_file():
            self.kl.value = float(json.loads((directory / KL_FILE).read_text(encoding="utf-8"))["value"])

    def leave_devices(self) -> None:
        """Move what `generate_config.offload_train_*` names to the host, of the actor and of the reference."""
        self._call(self.actors + self.references, "offload", what="the actor's move to the host")

    def _begin_turn(self) -> None:
        """Get the accelerators and bring the actor back; the reference comes back by itself where it is needed."""
        if self.turns is not None and self.turns.begin(self):
            self._call(self.actors, "onload", what="the actor's return to the accelerator")

    def _call(self, workers: list[Any], method: str, *args: Any, what: str) -> list[Any]:
        refs = [getattr(w, method).remote(*args) for w in workers]
        return get_all(refs, what=what, timeout_s=_UPDATE_TIMEOUT_S)

    def _offending(self, mini_batch: MiniBatch) -> list[str]:
        """Trajectories with a NaN or Inf; all of the mini-batch's where only the gradient had one."""
        samples = {
            i for found in self._call(self.actors, "broken_samples", what="finding the actor's NaN") for i in found
        }
        ids = mini_batch.trajectory_ids
        return [ids[i] for i in sorted(samples)] or ids

    def _share(self, mini_batch: MiniBatch, rank: int) -> list[MicroBatch]:
        return mini_batch.micro_batches[self._data_parallel_rank(rank)]

    def _data_parallel_rank(self, rank: int) -> int:
        """Megatron's rank order is tp-cp-ep-dp-pp: tensor-parallel ranks are neighbours, pipeline stages farthest."""
        tp = self.config.actor_config.tensor_model_parallel_size
        return rank // tp % self.num_data_parallel

    def _fill(self, workers: list[Any], batch: Batch, field: str) -> None:
        """Compute log-probs of all micro-batches in one call for each rank and store them under `field`.

        Every epoch holds the same mini-batches: each is computed once.
        """
        mini_batches = list({id(mini): mini for mini in batch.mini_batches}.values())
        refs = [
            w.compute_logprobs.remote([m for mini in mini_batches for m in self._share(mini, rank)])
            for rank, w in enumerate(workers)
        ]
        role = "reference" if workers is self.references else "actor"
        results: list[list[Tensor]] = get_all(refs, what=f"the {role}'s {field}", timeout_s=_UPDATE_TIMEOUT_S)
        for dp_rank, rank in self._one_rank_of_each_share(len(workers)):
            values = iter(results[rank])
            for mini in mini_batches:
                for micro in mini.micro_batches[dp_rank]:
                    setattr(micro, field, next(values))

    def _one_rank_of_each_share(self, num_ranks: int) -> list[tuple[int, int]]:
        first: dict[int, int] = {}
        for rank in range(num_ranks):
            first.setdefault(self._data_parallel_rank(rank), rank)
        return sorted(first.items())


_COUNTS = ("actor/skipped_steps", "actor/broken_tokens")
_MEANS = ("actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
"""Come weighted as in the loss, and are read as means."""


def _combine(name: str) -> Callable[[Sequence[float]], float]:
    """How a metric's values of several optimizer steps become one."""
    if name in _COUNTS:
        return sum
    if name.endswith("_max"):
        return max
    if name.endswith("_min"):
        return min
    return lambda values: sum(values) / len(values)
