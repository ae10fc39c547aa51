#!/usr/bin/env bash
# Make .venv and install the pinned environment. Repeating it does nothing while the requirement files are the same.
#
#     bash scripts/setup.sh          what .venv already is, and otherwise the CPU environment
#     bash scripts/setup.sh cuda     for GPUs (several GB)
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
[[ $kind == cpu || $kind == cuda ]] || fail "the environment must be cpu or cuda, got '$kind'. Say: bash scripts/setup.sh cuda"
wanted="$(cat setup.py scripts/setup.sh requirements/{common,"$kind",dev}.txt | sha256sum | cut -d' ' -f1)"
if [[ $kind == "$present" && -x .venv/bin/python && -f $STAMP && "$(<"$STAMP")" == "$wanted" ]]; then
    exit 0
fi

PYTHON="${PYTHON:-$(command -v python3.11 || command -v python3.12 || printf python3.11)}"
command -v "$PYTHON" >/dev/null \
    || fail "$PYTHON: not found. Install Python 3.11 or 3.12, or name one: PYTHON=/path/to/python3.12 bash scripts/setup.sh"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
    || fail "$PYTHON: must be Python 3.11 or 3.12, got $("$PYTHON" --version 2>&1 | head -n 1). Name another: PYTHON=/path/to/python3.12"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
    || fail "$PYTHON: has no venv module. Install it (Debian and Ubuntu: apt install python3.11-venv)."
command -v g++ >/dev/null || command -v c++ >/dev/null \
    || fail "g++: not found. Install a C++ compiler (Debian and Ubuntu: apt install build-essential)."

# vLLM for the CPU and for CUDA put the same files into a folder: one is never installed over the other.
if [[ $kind != "$present" || ! -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "making .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear .venv
fi
printf '%s\n' "$kind" > "$KIND_FILE"
rm -f "$STAMP"  # an interrupted installation is taken up again
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --quiet --progress-bar off)

if [[ $kind == cpu ]]; then
    say "torch for the CPU (about 200 MB)"
    # From an index that pip knows, else from torch's own, else the same version with CUDA, which is much larger.
    "${pip[@]}" --no-deps "torch==2.13.0+cpu" 2>/dev/null \
        || "${pip[@]}" --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" 2>/dev/null \
        || "${pip[@]}" "torch==2.13.0"
    say "libraries and vLLM (about 600 MB)"
else
    say "torch, vLLM, CUDA's libraries and the others (several GB)"
fi
"${pip[@]}" --no-deps -r requirements/common.txt -r "requirements/$kind.txt" -r requirements/dev.txt
say "turnwise itself"
"${pip[@]}" --no-deps --editable .
.venv/bin/python -c 'import torch, transformers, ray, megatron.core, rl' 2>/dev/null \
    || fail "the environment does not import. Remove .venv and run this again."
[[ $kind == cpu ]] || .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' \
    || fail "torch: pip took a build without CUDA from an index or folder of pip's configuration. Leave that out, remove .venv and run this again."
printf '%s\n' "$wanted" > "$STAMP"
say "done: .venv ($kind)"
