#!/usr/bin/env bash
# Create .venv and install the pinned environment. Does nothing if the requirement files have not changed.
#
#     bash scripts/setup.sh          the kind that .venv already has; a new .venv gets the CPU environment
#     bash scripts/setup.sh cuda     the environment for GPUs (several GB)
#     PYTHON=/path/to/python3.12 bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

KIND_FILE=.venv/.turnwise-kind
STAMP=.venv/.turnwise-requirements

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

present=cpu
if [[ -f $KIND_FILE ]]; then present="$(<"$KIND_FILE")"; fi
kind="${1:-$present}"
[[ $kind == cpu || $kind == cuda ]] || fail "the environment must be cpu or cuda, got '$kind'. Run: bash scripts/setup.sh cuda"
wanted="$(cat setup.py scripts/setup.sh requirements/{common,"$kind",dev}.txt | sha256sum | cut -d' ' -f1)"
if [[ $kind == "$present" && -x .venv/bin/python && -f $STAMP && "$(<"$STAMP")" == "$wanted" ]]; then
    exit 0
fi

PYTHON="${PYTHON:-$(command -v python3.11 || command -v python3.12 || printf python3.11)}"
command -v "$PYTHON" >/dev/null \
    || fail "$PYTHON: not found. Install Python 3.11 or 3.12, or name its path: PYTHON=/path/to/python3.12 bash scripts/setup.sh"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
    || fail "$PYTHON: must be Python 3.11 or 3.12, got $("$PYTHON" --version 2>&1 | head -n 1). Name another one: PYTHON=/path/to/python3.12"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
    || fail "$PYTHON: has no venv module. Install it (Debian and Ubuntu: apt install python3.11-venv)."
command -v g++ >/dev/null || command -v c++ >/dev/null \
    || fail "g++: not found. Install a C++ compiler (Debian and Ubuntu: apt install build-essential)."

# vLLM for the CPU and vLLM for CUDA install files of the same names, so .venv is recreated when the kind changes.
if [[ $kind != "$present" || ! -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "creating .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear .venv
fi
printf '%s\n' "$kind" > "$KIND_FILE"
rm -f "$STAMP"  # so that the next call repeats an interrupted installation
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --quiet --progress-bar off)

if [[ $kind == cpu ]]; then
    say "torch for the CPU (about 200 MB)"
    # Try pip's configured index, then torch's own index, then the same version with CUDA, which is much larger.
    "${pip[@]}" --no-deps "torch==2.13.0+cpu" 2>/dev/null \
        || "${pip[@]}" --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" 2>/dev/null \
        || "${pip[@]}" "torch==2.13.0"
    say "libraries and vLLM (about 600 MB)"
else
    say "torch, vLLM, CUDA libraries and the other packages (several GB)"
fi
"${pip[@]}" --no-deps -r requirements/common.txt -r "requirements/$kind.txt" -r requirements/dev.txt
say "turnwise"
"${pip[@]}" --no-deps --editable .
.venv/bin/python -c 'import torch, transformers, ray, megatron.core, rl' 2>/dev/null \
    || fail "the installed packages cannot be imported. Remove .venv and run this again."
[[ $kind == cpu ]] || .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' \
    || fail "torch: pip installed a build without CUDA from an index or folder of its configuration. Remove that index or folder from pip's configuration, remove .venv and run this again."
printf '%s\n' "$wanted" > "$STAMP"
say "done: .venv ($kind)"
