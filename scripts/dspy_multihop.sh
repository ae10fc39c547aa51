#!/usr/bin/env bash
# The DSPy tutorial on multi-hop research, with SmolLM2-135M on two CPU cores: environments, model, corpus and claims, cold
# start, the service, dspy.GRPO against it, recall on held-out claims before and after.
#
#     bash scripts/dspy_multihop.sh [--seed N] [--port N] [--steps N] ...
#     bash scripts/dspy_multihop.sh --hover --model models/Qwen2.5-7B-Instruct --config NAME
#
# The second line takes the tutorial's own data; it needs the hub, a model that can reason, and a configuration of `rl serve`
# for it. Further arguments go to examples/dspy_multihop/train.py.
# Repeating it skips finished stages. To train again, remove runs/dspy_multihop/grpo-seed*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNS=runs/dspy_multihop
CONFIG=serve_smollm2_135m_multihop
PORT=7453
DSPY_PACKAGES=(dspy==3.4.1 bm25s==0.3.16 PyStemmer==3.1.0)
SEED=0
HOVER=
arguments=()
while (($#)); do
    case "$1" in
        --hover) HOVER=1 ;;
        --seed) SEED="${2:?--seed needs a number}"; shift ;;
        --port) PORT="${2:?--port needs a number}"; shift ;;
        --model) MODEL="${2:?--model needs a folder}"; shift ;;
        --config) CONFIG="${2:?--config needs a name}"; shift ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

# dspy has its own environment: the client of a service needs nothing of Turnwise's.
prepare_dspy() {
    local wanted="${DSPY_PACKAGES[*]} ${HOVER:+datasets}"
    say "environment of dspy"
    if [[ -f .venv-dspy/.packages && "$(<.venv-dspy/.packages)" == "$wanted" ]]; then return; fi
    .venv/bin/python -m venv .venv-dspy
    .venv-dspy/bin/python -m pip install --quiet --disable-pip-version-check "${DSPY_PACKAGES[@]}" ${HOVER:+"datasets<4"}
    printf '%s' "$wanted" > .venv-dspy/.packages
}

in_dspy() { PYTHONPATH="$PWD" .venv-dspy/bin/python -m "$@"; }

# serve MODEL: start the service in the background and wait until it answers; it ends with this script.
serve() {
    say "service"
    mkdir -p "$RUNS"
    .venv/bin/python -m rl serve --config-name "$CONFIG" actor_config.load="$1" serve_config.port="$PORT" \
        megatron_training.seed="$((1234 + SEED))" megatron_training.output_dir="$RUNS" > "$RUNS/service.log" 2>&1 &
    SERVICE=$!
    trap 'kill -INT "$SERVICE" 2>/dev/null; wait "$SERVICE"' EXIT
    until (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; do
        kill -0 "$SERVICE" 2>/dev/null || { tail -n 20 "$RUNS/service.log" >&2; exit 1; }
        sleep 1
    done
}

if [[ -n $HOVER ]]; then
    DATA=data/dspy_multihop_hover
    RUNS=runs/dspy_multihop_hover
    arguments=(--chain-of-thought --max-tokens 512 --val 300 --test 300 --steps 500 "${arguments[@]}")
    say "environment"
    bash scripts/setup.sh
    prepare_dspy
    in_dspy examples.dspy_multihop.hover --output "$DATA"
    start="$MODEL"
else
    DATA=data/dspy_multihop
    prepare examples.dspy_multihop.make_data
    prepare_dspy
    in_dspy examples.dspy_multihop.demonstrate --data "$DATA"
    cold_start cold_start sft_smollm2_135m_multihop
    start="$(newest_checkpoint "$RUNS/cold_start")"
fi

RESULTS="$RUNS/grpo-seed$SEED"
if [[ ! -f $RESULTS/results.json ]]; then
    serve "$start"
    say "dspy.GRPO"
    in_dspy examples.dspy_multihop.train --data "$DATA" --output "$RESULTS" --seed "$SEED" \
        --api-base "http://127.0.0.1:$PORT/v1/" "${arguments[@]}"
fi
say "recall"
in_dspy examples.dspy_multihop.report "$RESULTS"
