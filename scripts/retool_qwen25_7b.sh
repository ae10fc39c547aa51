#!/usr/bin/env bash
# ReTool with Qwen2.5-7B on 8 GPUs of 80 GB: preprocessing, cold start, DAPO, curves. It downloads nothing.
#
# What has to be there:
# - the CUDA environment: bash scripts/setup.sh cuda
# - the model Qwen/Qwen2.5-7B-Instruct: models/Qwen2.5-7B-Instruct
# - the conversations of JoeYing/ReTool-SFT: dataset/ReTool-SFT/train_2000.parquet
# - the questions of BytedTsinghua-SIA/DAPO-Math-17k: dataset/dapo-math-17k.parquet
# - the problems of Maxwell-Jia/AIME_2024: dataset/AIME_2024/aime_2024_problems.parquet
# - the problems of opencompass/AIME2025: dataset/AIME2025/*.jsonl
# Arguments change the DAPO run: bash $0 megatron_training.train_iters=200
# Repeating it skips finished stages and resumes interrupted ones. To train again, remove runs/retool_qwen25_7b/dapo*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source scripts/retool.sh

RUNS=runs/retool_qwen25_7b
MODEL=models/Qwen2.5-7B-Instruct
retool 7b "$@"
