#!/usr/bin/env bash
# Install the environment if needed, check format, lint and types, run all tests. Arguments go to pytest:
#     bash scripts/test.sh -k packing
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

# One pytest run, so that there is one summary at the end: unit tests first, slow tests last.
say "pytest"
if [[ -d models/SmolLM2-135M-Instruct ]] || .venv/bin/python tools/fetch_model.py; then :; else
    printf 'test: the 135M model is not available; tests that need it are skipped.\n'
fi
exec .venv/bin/python -m pytest tests/unit tests/attacks tests/distributed tests/e2e "$@"
