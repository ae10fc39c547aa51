#!/usr/bin/env bash
# Install if needed, then format, lint, types and all tests. Arguments go to pytest: bash scripts/test.sh -k packing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh

say() { printf '\n== %s\n' "$*"; }
say "ruff format"
.venv/bin/ruff format --check --quiet . || { .venv/bin/ruff format --check . || true; exit 1; }
say "ruff check"
.venv/bin/ruff check .
say "mypy"
.venv/bin/mypy
say "shell scripts"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done

# One pytest for all, so that one summary ends the run: unit tests first, the slow ones last.
say "pytest"
if [[ -d models/SmolLM2-135M-Instruct ]] || .venv/bin/python tools/fetch_model.py; then :; else
    printf 'test: the 135M model is not there; tests that need it skip.\n'
fi
exec .venv/bin/python -m pytest tests/unit tests/attacks tests/distributed tests/e2e "$@"
