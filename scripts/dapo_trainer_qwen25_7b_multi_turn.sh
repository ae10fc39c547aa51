#!/usr/bin/env bash
# DAPO of Qwen2.5-7B with a code interpreter (ReTool) on 8 GPUs.
#
# Requirements:
# - the CUDA environment: bash scripts/setup.sh cuda
# - a model that has learned to call the tool, from `python -m rl sft`: actor_config.load
# - the prompts: .venv/bin/python -m rl preprocess --config-name datasets/math_17k_retool
# Arguments change the run: bash $0 actor_config.load=/models/my-sft megatron_training.train_iters=200
# configs/dapo_qwen25_7b_multi_turn.yaml sets tool, reward, model and parallel sizes; docs/configuration.md explains the keys.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ -x .venv/bin/python ]] || {
    printf '.venv: no environment found. Create it: bash scripts/setup.sh cuda\n' >&2
    exit 2
}
rl train --config-name dapo_qwen25_7b_multi_turn "$@"
