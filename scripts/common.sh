# Common part of the training scripts; source it, do not run it. Each function skips what is already done, so every script
# can be repeated. An interrupted run is resumed from its newest checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUNS=runs/quickstart
MODEL=models/SmolLM2-135M-Instruct

say() { printf '\n== %s\n' "$*"; }

# Run a command of the project. Ctrl-C reaches it directly, and it ends its own processes.
rl() { .venv/bin/python -m rl "$@"; }

# require_environment: scripts for GPUs do not install it, since the choice of CUDA is the user's.
require_environment() {
    if [[ ! -x .venv/bin/python ]]; then
        printf '.venv: no environment found. Create it: bash scripts/setup.sh cuda\n' >&2
        exit 2
    fi
}

# require PATH ...: name all paths that are missing, and end.
require() {
    local path missing=0
    for path in "$@"; do
        if [[ ! -e "$path" ]]; then
            printf '%s: not found. The first lines of %s say what has to be there.\n' "$path" "$0" >&2
            missing=1
        fi
    done
    if (( missing )); then exit 2; fi
}

# prepare_dataset NAME FILE [overrides]: preprocess configs/datasets/NAME.yaml to FILE, a path that ends in .parquet
prepare_dataset() {
    local name="$1" file="$2"
    shift 2
    if [[ -f "$file" ]]; then printf '%s is there already\n' "$file"; return; fi
    rl preprocess --config-name "datasets/$name" output_prefix="${file%.parquet}" "$@"
}

is_finished() { [[ -f "$1/summary.json" ]]; }

# An unfinished run without a checkpoint cannot be resumed: rename its directory, never delete it.
set_aside() {
    if [[ -d "$1" ]] && ! is_finished "$1"; then
        mv "$1" "$1.interrupted-$(date +%Y%m%d-%H%M%S)"
    fi
}

newest_checkpoint() {
    local found=("$1"/checkpoints/step_??????)
    [[ -d "${found[-1]}" ]] && printf '%s\n' "${found[-1]}"
}

# prepare [MODULE]: install the environment, fetch the model, make the data with the module of an example
prepare() {
    say "environment"
    bash scripts/setup.sh
    say "model"
    .venv/bin/python tools/fetch_model.py --output "$MODEL"
    say "data"
    .venv/bin/python -m "${1:-examples.quickstart.make_data}"
}

# evaluate NAME CONFIG MODEL [overrides]
evaluate() {
    local run="$RUNS/$1" config="$2" model="$3"
    shift 3
    say "evaluation of $model"
    if is_finished "$run"; then printf '%s is finished already\n' "$run"; return; fi
    set_aside "$run"
    rl evaluate --config-name "$config" --model "$model" \
        megatron_training.output_dir="$RUNS" megatron_training.run_name="$(basename "$run")" "$@"
}

# cold_start NAME CONFIG [overrides]
cold_start() {
    local run="$RUNS/$1" config="$2"
    shift 2
    say "cold start"
    if is_finished "$run"; then printf '%s is finished already\n' "$run"; return; fi
    set_aside "$run"
    rl sft --config-name "$config" actor_config.load="$MODEL" \
        megatron_training.output_dir="$RUNS" megatron_training.run_name="$(basename "$run")" "$@"
}

# train NAME CONFIG START [overrides]: START is a cold start's run, or a model's folder. Sets RUN to the directory of the finished run.
train() {
    local name="$1" config="$2" start="$3"
    [[ -f "$start/config.json" ]] || start="$(newest_checkpoint "$RUNS/$3")" ||
        { printf '%s: no checkpoint. Remove this directory and run the script again.\n' "$RUNS/$3" >&2; exit 1; }
    shift 3
    say "reinforcement learning"
    run_stage train "$name" "$config" "$start" "$@"
}

# train_seeds CONFIG START SEEDS [overrides]: a run for each of the SEEDS, a text such as "1 2", and the picture of their curves
train_seeds() {
    local config="$1" start="$2" seeds="$3" seed runs=()
    shift 3
    for seed in $seeds; do
        train "seed_$seed" "$config" "$start" megatron_training.seed="$seed" "$@"
        runs+=("$RUN")
    done
    say "report"
    rl compare "${runs[@]}" -o "$RUNS/curves.png"
}

# run_stage COMMAND NAME CONFIG MODEL [overrides]: `rl train` or `rl sft` in the run directory NAME; what was interrupted goes on
# in NAME-2 and so on, and a finished run stays as it is. Sets RUN to the directory of the finished run.
run_stage() {
    local command="$1" name="$2" config="$3" model="$4" number=2
    shift 4
    rl "$command" --config-name "$config" actor_config.load="$model" \
        megatron_training.output_dir="$RUNS" megatron_training.run_name="$name" megatron_training.resume_mode=auto "$@"
    RUN="$RUNS/$name"
    while [[ -d "$RUNS/$name-$number" ]]; do RUN="$RUNS/$name-$number"; number=$((number + 1)); done
}
