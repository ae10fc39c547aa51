#!/usr/bin/env bash
# DAPO of SmolLM2-135M with a search tool, from scratch: environment, model, corpus and questions, evaluation of the base
# model, cold start, DAPO, table and curves. Arguments change the DAPO run: bash $0 megatron_training.train_iters=20
# Repeating it skips finished stages and resumes an interrupted run. To train again, remove runs/search/dapo*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/search
prepare examples.search.make_data
evaluate base dapo_smollm2_135m_search "$MODEL"
cold_start cold_start sft_smollm2_135m_search
train dapo dapo_smollm2_135m_search cold_start "$@"
say "report"
rl report "$RUN" --base "$RUNS/base" --cold-start "$RUNS/cold_start"
