#!/usr/bin/env bash
# DAPO of Qwen2.5-7B with a search tool on 8 GPUs.
#
# It needs the CUDA environment (`bash scripts/setup.sh cuda`), a model (actor_config.load), the questions:
# `python -m rl preprocess --config-name datasets/search`, and a retriever, best on a machine of its own:
# `python -m rl retriever --corpus FILE --host ADDRESS`, whose address goes into configs/tools/search_tool_config.yaml.
# Arguments change the run: bash $0 actor_config.load=/models/my-sft megatron_training.train_iters=200
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ -x .venv/bin/python ]] || {
    printf '.venv: no environment. Make it: bash scripts/setup.sh cuda\n' >&2
    exit 2
}
rl train --config-name dapo_qwen25_7b_search "$@"
