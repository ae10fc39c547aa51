#!/usr/bin/env bash
# Convert a dataset that configs/datasets/NAME.yaml describes to rows for training or evaluation.
#
#   bash scripts/preprocess_data.sh gsm8k
#   bash scripts/preprocess_data.sh gsm8k input=/data/gsm8k/train.jsonl output_prefix=/data/gsm8k_train
#
# docs/data.md explains the keys.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ $# -eq 0 || "$1" == -* || "$1" == *=* ]]; then
    printf 'Usage: bash scripts/preprocess_data.sh NAME [key=value ...]. NAME is one of:\n' >&2
    basename -s .yaml configs/datasets/*.yaml >&2
    exit 2
fi
rl preprocess --config-name "datasets/$1" "${@:2}"
