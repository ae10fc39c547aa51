#!/usr/bin/env bash
# GRPO of SmolLM2-135M on word problems in GSM8K's form, from scratch: environment, model, data, evaluation of the base
# model, cold start, GRPO, table and curves. Arguments change the GRPO run: bash $0 megatron_training.train_iters=48
# Repeating it skips finished stages and resumes an interrupted run. To train again, remove runs/boxed/grpo*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/boxed
prepare examples.boxed.make_data
for name in train eval; do
    rl preprocess --config-name datasets/boxed input="data/boxed/$name.jsonl" output_prefix="data/boxed/$name"
done
evaluate base grpo_smollm2_135m_boxed "$MODEL"
cold_start cold_start sft_smollm2_135m_boxed
train grpo grpo_smollm2_135m_boxed cold_start "$@"
say "report"
rl report "$RUN" --base "$RUNS/base" --cold-start "$RUNS/cold_start"
