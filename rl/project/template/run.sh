#!/usr/bin/env bash
# Make the data, learn from demonstrations, then learn from rewards. Arguments change the last part:
#     bash run.sh megatron_training.train_iters=40
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON="${PYTHON:-PYTHON_PATH}"

"$PYTHON" make_data.py
if [[ ! -f runs/cold_start/summary.json ]]; then
    rm -rf runs/cold_start    # interrupted; it takes a minute
    "$PYTHON" -m rl sft --config-name sft megatron_training.run_name=cold_start
fi
start=(runs/cold_start/checkpoints/step_*)
"$PYTHON" -m rl train --config-name train actor_config.load="${start[-1]}" "$@"
