"""Settings that are valid alone and useless together."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rl.config.problems import Problem, warning
from rl.config.schema import Config, LrDecayStyle


def futile_problems(config: Config) -> Iterator[Problem]:
    """Warn of settings with which a run would finish without doing what they promise."""
    yield from _evaluation_problems(config)
    yield from _learning_problems(config)
    yield from _tool_problems(config)


def _evaluation_problems(config: Config) -> Iterator[Problem]:
    training, sampling = config.megatron_training, config.generate_config.eval_sampling_config
    where = "generate_config.eval_sampling_config"
    if not training.eval_data_path:
        return
    if sampling.num_samples > 1 and (sampling.temperature == 0 or sampling.top_k == 1):
        cause = "temperature 0" if sampling.temperature == 0 else "top_k 1"
        yield warning(
            f"{where}.num_samples: with {cause} all samples of a prompt are the same, got {sampling.num_samples}. "
            "Set a temperature above 0 and top_k -1, or num_samples to 1."
        )
    for path in training.eval_data_path.values():
        if training.data_path and os.path.realpath(path) == os.path.realpath(training.data_path):
            yield warning(
                f"megatron_training.eval_data_path: has the file that is trained on, got '{path}', so an evaluation "
                "does not show what is learned. Split rows off with eval_size of `rl preprocess`."
            )
    if not (training.eval_interval or training.eval_before_train or training.eval_after_train):
        yield warning(
            "megatron_training.eval_data_path: is not read by `rl train`, since eval_interval is 0, eval_before_train "
            "and eval_after_train false. Set one of them."
        )
    elif training.eval_interval > training.train_iters:
        yield warning(
            f"megatron_training.eval_interval: has no effect, got {training.eval_interval}, because the run ends after "
            f"{training.train_iters} steps, its train_iters. Lower it."
        )


def _learning_problems(config: Config) -> Iterator[Problem]:
    rl, actor = config.rl_config, config.actor_config
    if rl.verifier_weight and not any(rl.verifier_weight) and rl.turn_credit_coef == 0:
        yield warning(
            f"rl_config.verifier_weight: every score is 0, so the model learns nothing, got {rl.verifier_weight}. "
            "Give a reward a weight."
        )
    if rl.overlong_buffer_enable and rl.overlong_buffer_penalty_factor == 0:
        yield warning(
            "rl_config.overlong_buffer_enable: subtracts nothing, got overlong_buffer_penalty_factor 0. Raise that, or "
            "set false."
        )
    if actor.lr_warmup_fraction == 1 and actor.lr_decay_style is not LrDecayStyle.CONSTANT:
        yield warning(
            f"actor_config.lr_decay_style: has no effect, got {actor.lr_decay_style}, because the warm-up lasts the "
            "whole run. Lower lr_warmup_fraction."
        )


def _tool_problems(config: Config) -> Iterator[Problem]:
    rl = config.rl_config
    if not rl.multi_turn_enable:
        return
    if rl.max_tool_calls == 0:
        yield warning(
            "rl_config.max_tool_calls: tools are offered but never run, got 0. Raise it, or set multi_turn_enable "
            "to false."
        )
    elif rl.max_parallel_calls > rl.max_tool_calls:
        yield warning(
            f"rl_config.max_parallel_calls: a trajectory has max_tool_calls {rl.max_tool_calls} in all, got "
            f"{rl.max_parallel_calls} for one turn. Lower it, or raise max_tool_calls."
        )
