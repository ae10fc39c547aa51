#!/usr/bin/env bash
# Install the environment if needed, check format, lint, types and documentation, run all tests. Arguments go to pytest:
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
say "documentation"
site_log="$(mktemp)"
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build > "$site_log" 2>&1 || { cat "$site_log"; rm -f "$site_log"; exit 1; }
rm -f "$site_log"

if [[ -d models/SmolLM2-135M-Instruct ]] || .venv/bin/python tools/fetch_model.py; then :; else
    printf 'test: the 135M model is not available; tests that need it are skipped.\n'
fi

# Unit tests run in several processes. The others start engines and train, so each has the machine to itself.
INTERRUPTED=2 NO_TESTS=5  # exit codes of pytest: Ctrl-C, and a `-k` that leaves no test
failed=0 ran=0
tests() {
    local code=0
    .venv/bin/python -m pytest "$@" || code=$?
    if [[ $code == "$INTERRUPTED" ]]; then exit "$code"; fi
    if [[ $code != "$NO_TESTS" ]]; then ran=1; fi
    if [[ $code != 0 && $code != "$NO_TESTS" ]]; then failed=$code; fi
}
say "pytest: unit tests"
tests tests/unit --numprocesses auto --maxprocesses 4 "$@"
say "pytest: attacks, distributed, end to end"
tests tests/attacks tests/distributed tests/e2e "$@"
if [[ $ran == 0 ]]; then exit "$NO_TESTS"; fi
exit "$failed"
