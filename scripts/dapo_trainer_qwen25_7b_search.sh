#!/usr/bin/env bash
# DAPO of Qwen2.5-7B with a search tool on 8 GPUs, with tool calls in Qwen's own format.
# scripts/search_r1_qwen25_7b.sh has Search-R1's prompt, format and settings.
#
# Requirements:
# - the CUDA environment: bash scripts/setup.sh cuda
# - a model: actor_config.load
# - the questions: .venv/bin/python -m rl preprocess --config-name datasets/search
# - a retriever, preferably on a separate machine: .venv/bin/python -m rl retriever --corpus FILE --host ADDRESS
#   Put its address into configs/tools/search_tool_config.yaml.
# Arguments change the run: bash $0 actor_config.load=/models/my-sft megatron_training.train_iters=200
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require_environment
rl train --config-name dapo_qwen25_7b_search "$@"
