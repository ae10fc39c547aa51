#!/usr/bin/env bash
# GRPO of SmolLM2-135M on word problems that it solves with a program, in the plain text of TRL's TextEnvironment, from
# scratch: environment, model, data, evaluation of the base model, cold start, GRPO with two seeds, and the picture of their
# curves. Arguments change the GRPO runs: bash $0 megatron_training.train_iters=24
# Repeating it skips finished stages and resumes an interrupted run. To train again, remove runs/python_interpreter/seed_*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/python_interpreter
prepare examples.python_interpreter.make_data
evaluate base grpo_smollm2_135m_python_interpreter "$MODEL"
cold_start cold_start sft_smollm2_135m_python_interpreter
train_seeds grpo_smollm2_135m_python_interpreter cold_start "1 2" "$@"
