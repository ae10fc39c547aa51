#!/usr/bin/env bash
# GRPO of SmolLM2-135M with the Wiki tool of TRL's TextEnvironment, from scratch: environment, model, data, evaluation of
# the base model, cold start, GRPO with two seeds, and the picture of their curves. Arguments change the GRPO runs.
# Repeating it skips finished stages and resumes an interrupted run. To train again, remove runs/wiki_qa/seed_*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/wiki_qa
prepare examples.wiki_qa.make_data
evaluate base grpo_smollm2_135m_wiki_qa "$MODEL"
cold_start cold_start sft_smollm2_135m_wiki_qa
train_seeds grpo_smollm2_135m_wiki_qa cold_start "1 2" "$@"
