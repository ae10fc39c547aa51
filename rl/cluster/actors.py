"""The driver's side of the actor: calls all ranks of the actor and of the reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.algorithms.kl import KlCoefficient
from rl.batch.plan import share_of
from rl.batches import BatchPlan, MiniBatchPlan, RunPlace, Share, UpdateReport
from rl.cluster.ranks import Ranks
from rl.cluster.turns import Turns
from rl.config.model_folder import KL_FILE
from rl.config.schema import Config
from rl.types import Span, WeightUpdate
from rl.weight_sync.plan import join_checksums

_PUBLISH_TIMEOUT_S = 600.0


class ActorGroup:
    """All ranks of the actor and, if a KL term needs one, of the reference (`rl.interfaces.Actor`).

    Args:
        actors: In order of rank.
        references: In order of rank, with the actor's parallel layout; None without a reference.
        shard_directory: Folder in shared memory for published weights.
        nodes: Ray's id of each actor's node.
    """

    def __init__(
        self, actors: Ranks, references: Ranks | None, config: Config, shard_directory: Path, *, nodes: Sequence[str]
    ) -> None:
        self.actors, self.references, self.config = actors, references, config
        self.shard_directory, self.nodes = shard_directory, nodes
        self.turns: Turns | None = None
        """Set if engines share the accelerators."""
        self.dp_ranks: list[int] = self._call(actors, "dp_rank", what="reading the actor's layout")
        self.num_publishes = 0
        self.kl = KlCoefficient.of(config.rl_config)
        self._loaded: tuple[BatchPlan, list[Share]] | None = None
        """The batch that the actor's ranks have packed, and each rank's share."""

    @property
    def num_data_parallel(self) -> int:
        """Ranks that train on different samples."""
        return max(self.dp_ranks) + 1

    def fill_old_logprobs(self, plan: BatchPlan) -> None:
        """Compute the current policy's log-probs, if the batch has more than one optimizer step.

        With one step the update uses the log-probs of its own forward pass; with `bypass_mode` it uses the engine's.
        """
        num_updates = len(plan.mini_batches) * plan.epochs
        if num_updates > 1 and not self.config.rl_config.rollout_correction.bypass_mode:
            self._load(plan)
            self._call(self.actors, "fill_old_logprobs", what="the actor's old log-probs")

    def fill_ref_logprobs(self, plan: BatchPlan) -> dict[str, float]:
        """Compute the reference's log-probs, if a KL term needs them.

        With the KL term in the reward, each trajectory's penalty is coefficient * sum over the sampled tokens of the
        estimate of KL(policy || reference). The policy's log-probs are the engine's, which sampled the tokens.

        Returns:
            `actor/reward_kl_penalty`, the mean estimate per token, and `actor/reward_kl_penalty_coeff`; empty if the
            KL term is in the loss.
        """
        if self.references is None:
            return {}
        self._begin_turn()
        in_reward = self.config.rl_config.use_kl_in_reward
        shares = self._shares(plan) if in_reward else self._load(plan)
        self._call_each(self.references, "load_batch", shares, what="loading the reference's batch")
        if in_reward:  # the batch may still lose rows, so the actor does not load it yet
            return self._penalize(plan)
        columns = self.references.begin("batch_logprobs")
        self._call_each(self.actors, "fill_ref_logprobs", columns, what="the reference's log-probs")
        return {}

    def update(self, plan: BatchPlan, place: RunPlace) -> UpdateReport:
        """One optimizer step for each mini-batch, all with the learning rate of the run's step.

        Metrics are averaged over the optimizer steps; counts are summed. Values that are not finite are dropped.
        `actor/entropy`, `actor/ppo_kl` and `actor/pg_clipfrac` become weighted means, even if the loss divides by a
        constant.
        """
        columns = [
            ({i: plan.weights[i] for i in share.rows}, {i: plan.advantages[i] for i in share.rows})
            for share in self._load(plan)
        ]
        self.actors.call("fill_loss", columns, what="filling the actor's advantages")
        totals: dict[str, list[float]] = {}
        offending: dict[str, None] = {}
        for number in list(range(len(plan.mini_batches))) * plan.epochs:
            mini_batch = plan.mini_batches[number]
            metrics = self._call(self.actors, "update_on", number, place, self.kl.value, what="the actor's update")[0]
            loss_weight = sum(plan.weights[i] * plan.rows[i].header.num_loss_tokens for i in mini_batch.rows)
            metrics |= {name: metrics[name] / loss_weight for name in _MEANS if name in metrics}
            for name, value in metrics.items():
                if math.isfinite(value):
                    totals.setdefault(name, []).append(value)
            if metrics.get("actor/skipped_steps"):
                offending |= dict.fromkeys(self._offending(plan, mini_batch))
        combined = {name: _combine(name)(values) for name, values in totals.items()}
        if self.references is not None and not self.config.rl_config.use_kl_in_reward:
            combined["actor/kl_coef"] = self.kl.value
            self.kl.observe(
                combined.get("actor/kl", self.kl.target), sum(m.num_trajectories for m in plan.mini_batches)
            )
        self._loaded = None  # its rows may leave the object store
        return UpdateReport(combined, list(offending))

    def record_tokens(self, path: Path) -> list[str]:
        """Have the ranks write what the update computed for the tokens of its batch; see `rl.interfaces.Actor`."""
        failures = self._call(self.actors, "record_tokens", path, what="recording the actor's tokens")
        return [failure for failure in failures if failure is not None]

    def publish(self, version: int) -> WeightUpdate:
        """Write the weights to shared memory, with a checksum the first time."""
        self._begin_turn()
        with_checksum = self.num_publishes == 0
        self.num_publishes += 1
        arguments = [(self.shard_directory, version, with_checksum)] * len(self.actors)
        what = "publishing the actor's weights"
        written = self.actors.call("publish", arguments, what=what, timeout_s=_PUBLISH_TIMEOUT_S)
        places = [(node, shard) for node, shard in zip(self.nodes, written, strict=True) if shard]
        return WeightUpdate(
            version=version,
            paths=tuple(str(shard.path) for _, shard in places),
            checksum=join_checksums(shard.checksum for _, shard in places) if with_checksum else None,
            nodes=tuple(node for node, _ in places),
            num_bytes=tuple(shard.num_bytes for _, shard in places),
        )

    def save_checkpoint(self, directory: Path) -> None:
        """Write Hugging Face weights, the optimizer's state, and the KL coefficient if it is adaptive."""
        self._begin_turn()
        self._call(self.actors, "save_checkpoint", directory, what="writing the actor's checkpoint")
        if self.kl.is_adaptive:
            (directory / KL_FILE).write_text(json.dumps({"value": self.kl.value}) + "\n", encoding="utf-8")

    def load_checkpoint(self, directory: Path) -> None:
        """Restore a checkpoint into the actor; the reference keeps the weights of `actor_config.load`."""
        self._begin_turn()
        self._call(self.actors, "load_checkpoint", directory, what="reading the actor's checkpoint")
        if self.kl.is_adaptive and (directory / KL_FILE).is_file():
            self.kl.value = float(json.loads((directory / KL_FILE).read_text(encoding="utf-8"))["value"])

    def take_spans(self) -> list[Span]:
        """When each rank ran which of its methods since the last call."""
        spans = []
        for role, ranks in (("actor", self.actors), ("reference", self.references)):
            if ranks is not None:
                times = self._call(ranks, "take_times", what=f"reading the {role}'s times")
                spans += [Span(f"{role} {i}", *time) for i, own in enumerate(times) for time in own]
        return spans

    def start_profile(self) -> None:
        """Begin to profile the actor's ranks."""
        self._call(self.actors, "start_profile", what="starting the actor's profile")

    def stop_profile(self, folder: Path, name: str) -> list[str]:
        """Write `NAME.rank_K.json.gz` and `.txt` for each rank of the actor; returns what went wrong."""
        arguments = [(folder, f"{name}.rank_{rank}") for rank in range(len(self.actors))]
        failures = self.actors.call("stop_profile", arguments, what="writing the actor's profile")
        return [failure for failure in failures if failure is not None]

    def leave_devices(self) -> None:
        """Move the parts that `generate_config.offload_train_*` names to the host, for actor and reference."""
        for ranks in (self.actors, self.references):
            if ranks is not None:
                self._call(ranks, "offload", what="the actor's move to the host")

    def _begin_turn(self) -> None:
        """Take the accelerators and bring the actor back; the reference returns by itself when it is needed."""
        if self.turns is not None and self.turns.begin(self):
            self._call(self.actors, "onload", what="the actor's return to the accelerator")

    def _load(self, plan: BatchPlan) -> list[Share]:
        """Have every rank fetch and pack its rows, once per batch; returns each rank's share."""
        self._begin_turn()
        if self._loaded is None or self._loaded[0] is not plan:
            shares = self._shares(plan)
            self._call_each(self.actors, "load_batch", shares, what="loading the actor's batch")
            self._loaded = plan, shares
        return self._loaded[1]

    def _shares(self, plan: BatchPlan) -> list[Share]:
        shares = [share_of(plan, dp_rank) for dp_rank in range(self.num_data_parallel)]
        return [shares[dp_rank] for dp_rank in self.dp_ranks]

    def _penalize(self, plan: BatchPlan) -> dict[str, float]:
        """Set `kl_penalty` of the batch's trajectories."""
        assert self.references is not None, "a KL term has a reference"
        by_row: dict[int, float] = {}
        for sums in self._call(self.references, "kl_sums", what="the reference's log-probs"):
            by_row |= sums  # the same on the ranks that share them
        coefficient = self.kl.value
        for number, kl in sorted(by_row.items()):
            plan.members[plan.rows[number].trajectory].kl_penalty += coefficient * kl
        trajectories = {row.trajectory for row in plan.rows}
        mean = sum(by_row.values()) / sum(row.header.num_loss_tokens for row in plan.rows)
        self.kl.observe(mean, len(trajectories))
        return {"actor/reward_kl_penalty": mean, "actor/reward_kl_penalty_coeff": coefficient}

    def _call(self, ranks: Ranks, method: str, *args: Any, what: str) -> list[Any]:
        return ranks.call(method, [args] * len(ranks), what=what)

    def _call_each(self, ranks: Ranks, method: str, argument: Sequence[Any], *, what: str) -> list[Any]:
        return ranks.call(method, [(own,) for own in argument], what=what)

    def _offending(self, plan: BatchPlan, mini_batch: MiniBatchPlan) -> list[str]:
        """Ids of trajectories with a NaN or Inf; all of the mini-batch if only the gradient had one."""
        found = self._call(self.actors, "broken_samples", what="finding the actor's NaN")
        samples = {i for own in found for i in own}
        ids = [plan.trajectory_ids[plan.rows[number].trajectory] for number in mini_batch.rows]
        return [ids[i] for i in sorted(samples)] or ids


_COUNTS = ("actor/skipped_steps", "actor/broken_tokens")
_MEANS = ("actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
"""Arrive weighted as in the loss and become means."""


def _combine(name: str) -> Callable[[Sequence[float]], float]:
    """How to combine a metric's values over several optimizer steps."""
    if name in _COUNTS:
        return sum
    if name.endswith("_max"):
        return max
    if name.endswith("_min"):
        return min
    return lambda values: sum(values) / len(values)
