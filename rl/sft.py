"""The cold start: supervised fine-tuning on demonstrations, with the same actor and checkpoints as `rl.train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rl.batch.layout import demonstration_layout
from rl.batch.packing import plan_samples
from rl.batches import Sample
from rl.cluster.launch import launch
from rl.config.schema import Config
from rl.data.cursor import PromptCursor
from rl.data.demonstrations import load_demonstrations
from rl.data.prompts import id_in_epoch
from rl.preflight import preflight_sft
from rl.run.resume import check_place
from rl.run.run import Run


def main(config: Config, name: str) -> None:
    """Train on the assistant's tokens of `megatron_training.data_path`.

    Args:
        config: The composed configuration.
        name: Name of the configuration, for the run directory.

    Raises:
        TurnwiseError: An error that the user can fix.
    """
    renderer = preflight_sft(config).renderer
    training = config.megatron_training
    longest = training.seq_length or config.generate_config.max_model_len
    samples = load_demonstrations(Path(training.data_path), renderer, longest)
    cursor = PromptCursor.over(((s.trajectory_id, s.token_ids.tolist()) for s in samples), training)
    check_place(config, cursor)
    with (
        Run.open(config, name) as run,
        launch(config, log_directory=run.directory.logs, loss="sft") as cluster,
        run.saving_on_termination(),
    ):
        actor = cluster.actor
        assert actor is not None, "launch starts an actor for the cold start"
        layout = demonstration_layout(config, num_data_parallel=actor.num_data_parallel)
        start_step = run.resume(actor, cursor)
        for step in run.steps(start_step):
            with run.step(step) as metrics:
                rows = _next_rows(samples, cursor, training.global_batch_size)
                batch = plan_samples(rows, layout)
                with metrics.time("update_actor"):
                    metrics.record_update(actor.update(batch, run.place(step)))
                metrics["perf/total_num_tokens"] = float(sum(len(row.token_ids) for row in rows))
                if run.is_save_due(step):
                    with metrics.time("save_checkpoint"):
                        run.save(step + 1, actor, cursor)


def _next_rows(samples: list[Sample], cursor: PromptCursor, count: int) -> list[Sample]:
    """Take the next demonstrations and add the epoch to their ids, so that a repeated one counts twice in a batch."""
    rows = []
    for index, epoch in cursor.take_with_epochs(count):
        name = id_in_epoch(samples[index].trajectory_id, epoch)
        rows.append(replace(samples[index], trajectory_id=name, group_id=name))
    return rows
