#!/usr/bin/env bash
# Search-R1 with Qwen2.5-32B on four machines with 8 GPUs of 80 GB each: preprocessing, GRPO, curves. It downloads nothing.
# Run it on the first machine.
#
# What has to be there, under the same paths on every machine:
# - the CUDA environment: bash scripts/setup.sh cuda
# - the base model Qwen/Qwen2.5-32B: models/Qwen2.5-32B
# - train.parquet of PeterJinGo/nq_hotpotqa_train: dataset/nq_hotpotqa_train.parquet
# - test.parquet of the same: dataset/nq_hotpotqa_test.parquet
# What has to run:
# - a Ray cluster: .venv/bin/ray start --head on the first machine, .venv/bin/ray start --address=FIRST:6379 on the others
# - a retriever at http://localhost:8000/retrieve on every machine. With words instead of embeddings:
#     .venv/bin/python -m rl retriever --corpus wiki-18.jsonl --backend tantivy
#   examples/search_r1/README.md shows how to start Search-R1's own, with E5. One retriever for all: put its address into
#   configs/tools/search_tool_config.yaml.
# Arguments change the run: bash $0 megatron_training.train_iters=200
# Repeating it resumes an interrupted run. To train again, remove runs/search_r1_qwen25_32b/grpo*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source scripts/search_r1.sh

RUNS=runs/search_r1_qwen25_32b
MODEL=models/Qwen2.5-32B
search_r1 32b "$@"
