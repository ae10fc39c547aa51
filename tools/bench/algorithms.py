"""Each algorithm on a small game, same budget: samples, advantages, packing and updates as in a run, no engine.

The game has two turns. A prompt is a symbol; the model answers with a symbol, the environment with another, and the
model with one more. In each turn one symbol of the vocabulary is right; the model finds it by trial.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from rl.batch.groups import estimate_advantages, plan_batch
from rl.batch.layout import packing_layout
from rl.batches import RunPlace
from rl.cluster.actors import ActorGroup
from rl.cluster.ranks import LocalRanks
from rl.config.schema import Config, Device, LossAggregation
from rl.rollout.headers import header_of_group
from rl.training.actor import Actor
from rl.types import Group, Prompt, StopReason, TokenSequence, ToolResult, ToolStatus, Trajectory, Turn
from tools.bench.figures import Figure, write_json

_VOCAB_SIZE, _NUM_PROMPTS, _NUM_SAMPLES = 16, 8, 16
_NUM_STEPS, _NUM_LAST = 60, 5
_GOAL = 0.95


@dataclass(slots=True, frozen=True)
class Algorithm:
    """Settings of an algorithm."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of `rl_config`; all other settings are the same for every algorithm."""
    rewards_turns: bool = False
    """The first turn's reward is given at the turn instead of in the score."""


ALGORITHMS = (
    Algorithm("grpo", {"token_level_loss": False}),
    Algorithm("dapo", {"clip_higher_enable": True, "filter_groups_enable": True}),
    Algorithm(
        "dr_grpo",
        {
            "norm_adv_by_std": False,
            "loss_agg_mode": LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM,
            "loss_scale_factor": 2.0,
        },
    ),
    Algorithm("rloo", {"adv_estimator": "rloo", "policy_loss": "reinforce"}),
    Algorithm("reinforce++", {"adv_estimator": "reinforce_plus_plus"}),
    Algorithm("reinforce++-baseline", {"adv_estimator": "reinforce_plus_plus_baseline"}),
    Algorithm("gspo", {"policy_loss": "gspo", "token_level_loss": False}),
    Algorithm("gmpo", {"policy_loss": "gmpo", "token_level_loss": False, "clip_ratio": 0.4}),
    Algorithm("cispo", {"policy_loss": "cispo"}),
    Algorithm("dual clip", {"clip_ratio_c": 3.0}),
    Algorithm("turn credit", {"turn_credit_coef": 1.0, "turn_reward_discount": 0.0}, rewards_turns=True),
)


@dataclass(slots=True, frozen=True)
class Game:
    """The right symbols."""

    first: Tensor
    """[prompts], for each prompt."""
    second: Tensor
    """[vocabulary], for each answer of the environment."""
    answers: Tensor
    """[prompts], the environment's answers."""

    @staticmethod
    def deal(generator: torch.Generator) -> Game:
        """Draw a game."""
        draws = [torch.randperm(_VOCAB_SIZE, generator=generator) for _ in range(3)]
        return Game(draws[0][:_NUM_PROMPTS], draws[1], draws[2][:_NUM_PROMPTS])


def measure(algorithms: tuple[Algorithm, ...] = ALGORITHMS, num_steps: int = _NUM_STEPS) -> list[Figure]:
    """Train each algorithm from the same start.

    Args:
        algorithms: Which.
        num_steps: Steps of 8 prompts with 16 trajectories each, in two optimizer steps.

    Returns:
        The mean reward of each one's last steps; 1 if both symbols are right.
    """
    with tempfile.TemporaryDirectory(prefix="turnwise-bench-") as directory:
        _write_model(Path(directory))
        curves = [(a.name, _train(a, Path(directory), num_steps)) for a in algorithms]
    figures = []
    for name, rewards in curves:
        reached = next((step + 1 for step, reward in enumerate(rewards) if reward >= _GOAL), None)
        detail = f"from {rewards[0]:.2f}; " + (f"{_GOAL} after {reached} steps" if reached else "not reached")
        last = rewards[-_NUM_LAST:]
        figures.append(Figure(f"algorithms / {name}", sum(last) / len(last), "reward", _GOAL, detail=detail))
    return figures


def _train(algorithm: Algorithm, model_folder: Path, num_steps: int) -> list[float]:
    """The mean reward of each step."""
    config = _config(algorithm, model_folder)
    game = Game.deal(torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    sampler = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    rewards = []
    with Actor(config) as actor:
        layout = packing_layout(config, num_data_parallel=1)
        ranks = ActorGroup(LocalRanks([actor]), None, config, model_folder, nodes=["here"])
        for step in range(num_steps):
            groups, reward = _play(sampler, game, rewards_turns=algorithm.rewards_turns)
            rewards.append(reward)
            headers = [header_of_group(group) for group in groups]
            plan = plan_batch(headers, config, layout, {})
            if plan.rows:
                ranks.fill_old_logprobs(plan)
                estimate_advantages(plan, headers, config, layout, {})
                ranks.update(plan, RunPlace(step, num_steps))
            sampler.load_state_dict(dict(actor.export_hf_weights()), strict=False)
    return rewards


@torch.no_grad()
def _play(sampler: PreTrainedModel, game: Game, *, rewards_turns: bool) -> tuple[list[Group], float]:
    """Sample both turns of every trajectory at once."""
    prompts = torch.arange(_NUM_PROMPTS).repeat_interleave(_NUM_SAMPLES)
    first, first_logprobs = _sample(sampler, prompts[:, None])
    answers = game.answers[prompts]
    second, second_logprobs = _sample(sampler, torch.stack([prompts, first, answers], 1))
    is_first_right = (first == game.first[prompts]).float()
    is_second_right = (second == game.second[answers]).float()
    groups = [Group(Prompt(str(p), [], "", "game"), []) for p in range(_NUM_PROMPTS)]
    for row, p in enumerate(prompts.tolist()):
        sequence = TokenSequence([p])
        sequence.append_sampled([int(first[row])], [float(first_logprobs[row])], 0)
        sequence.append_context([int(answers[row])])
        sequence.append_sampled([int(second[row])], [float(second_logprobs[row])], 0)
        one, other = float(is_first_right[row]), float(is_second_right[row])
        result = ToolResult("game", "", ToolStatus.OK, reward=one if rewards_turns else None)
        turns = [Turn("", 1, results=[result]), Turn("", 1)]
        score = other if rewards_turns else (one + other) / 2
        trajectories = groups[p].trajectories
        trajectories.append(
            Trajectory(groups[p].prompt, len(trajectories), [sequence], turns, StopReason.FINISHED, score=score)
        )
    return groups, float((is_first_right + is_second_right).mean() / 2)


def _sample(sampler: PreTrainedModel, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-prob."""
    logprobs = sampler(token_ids).logits[:, -1].log_softmax(-1)
    tokens = logprobs.exp().multinomial(1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


def _config(algorithm: Algorithm, model_folder: Path) -> Config:
    config = Config()
    config.actor_config.load = str(model_folder)
    config.actor_config.lr, config.actor_config.weight_decay = 3e-3, 0.0
    training, rl = config.megatron_training, config.rl_config
    training.device, training.bf16 = Device.CPU, False
    training.global_batch_size, training.train_iters = _NUM_PROMPTS, _NUM_STEPS
    rl.n_samples_per_prompt, rl.mini_batch_size = _NUM_SAMPLES, _NUM_PROMPTS // 2
    rl.multi_turn_enable, rl.entropy_coeff = True, 0.01
    for key, value in algorithm.settings.items():
        assert hasattr(rl, key), f"no such key: {key}"
        setattr(rl, key, value)
    return config


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=_VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


if __name__ == "__main__":
    output = sys.argv[2]
    write_json(measure(), Path(output))
