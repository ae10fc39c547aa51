#!/usr/bin/env bash
# ReTool with Qwen2.5-32B on four machines with 8 GPUs of 80 GB each: preprocessing, cold start, DAPO, curves. It downloads
# nothing. Run it on the first machine.
#
# What has to be there, under the same paths on every machine:
# - the CUDA environment: bash scripts/setup.sh cuda
# - the model Qwen/Qwen2.5-32B-Instruct: models/Qwen2.5-32B-Instruct
# - the conversations of JoeYing/ReTool-SFT: dataset/ReTool-SFT/train_2000.parquet
# - the questions of BytedTsinghua-SIA/DAPO-Math-17k: dataset/dapo-math-17k.parquet
# - the problems of Maxwell-Jia/AIME_2024: dataset/AIME_2024/aime_2024_problems.parquet
# - the problems of opencompass/AIME2025: dataset/AIME2025/*.jsonl
# What has to run:
# - a Ray cluster: .venv/bin/ray start --head on the first machine, .venv/bin/ray start --address=FIRST:6379 on the others
# - a sandbox on every machine: .venv/bin/python -m rl sandbox
# Arguments change the DAPO run: bash $0 megatron_training.train_iters=200
# Repeating it skips finished stages and resumes interrupted ones. To train again, remove runs/retool_qwen25_32b/dapo*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source scripts/retool.sh

RUNS=runs/retool_qwen25_32b
MODEL=models/Qwen2.5-32B-Instruct
retool 32b "$@"
