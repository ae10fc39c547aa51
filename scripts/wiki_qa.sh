#!/usr/bin/env bash
# GRPO of SmolLM2-135M with the Wiki tool of TRL's TextEnvironment, from scratch: environment, model, data, GRPO with two
# seeds, and the picture of their curves. Arguments change the GRPO runs.
# Repeating it skips finished runs and resumes an interrupted one. To train again, remove runs/wiki_qa.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/wiki_qa
prepare examples.wiki_qa.make_data
runs=()
for seed in 1 2; do
    train "seed_$seed" grpo_smollm2_135m_wiki_qa "$MODEL" megatron_training.seed="$seed" "$@"
    runs+=("$RUN")
done
say "report"
rl compare "${runs[@]}" -o "$RUNS/curves.png"
