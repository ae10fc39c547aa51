#!/usr/bin/env bash
# GRPO of SmolLM2-135M with the calculator of TRL's TextEnvironment, from scratch: environment, model, data, GRPO with
# five seeds, and the picture of their curves. Arguments change the GRPO runs.
# Repeating it skips finished runs and resumes an interrupted one. To train again, remove runs/calculator.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/calculator
prepare examples.calculator.make_data
train_seeds grpo_smollm2_135m_calculator "$MODEL" "1 2 3 4 5" "$@"
