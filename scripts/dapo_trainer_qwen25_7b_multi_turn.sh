#!/usr/bin/env bash
# DAPO of Qwen2.5-7B with a code interpreter (ReTool) on 8 GPUs, with MindSpeed-RL's settings: one call and 2,048 tokens.
# scripts/retool_qwen25_7b.sh has the paper's lengths, and the cold start too.
#
# Requirements:
# - the CUDA environment: bash scripts/setup.sh cuda
# - a model that has learned to call the tool, as the cold start of scripts/retool_qwen25_7b.sh makes: actor_config.load
# - the prompts: .venv/bin/python -m rl preprocess --config-name datasets/math_17k_retool
# Arguments change the run: bash $0 actor_config.load=/models/my-sft megatron_training.train_iters=200
# configs/dapo_qwen25_7b_multi_turn.yaml sets tool, reward, model and parallel sizes; docs/configuration.md explains the keys.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require_environment
rl train --config-name dapo_qwen25_7b_multi_turn "$@"
