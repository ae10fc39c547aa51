#!/usr/bin/env bash
# GRPO of SmolLM2-135M in a guessing game, from scratch: environment, model, data, cold start, GRPO, table and curves.
# Arguments change the GRPO run: bash $0 megatron_training.train_iters=80
# Repeating it skips finished stages and resumes an interrupted run. To train again, remove runs/game/grpo*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/game
prepare examples.environment.make_data
evaluate base grpo_smollm2_135m_game "$MODEL"
cold_start cold_start sft_smollm2_135m_game
train grpo grpo_smollm2_135m_game cold_start "$@"
say "report"
rl report "$RUN" --base "$RUNS/base" --cold-start "$RUNS/cold_start"
