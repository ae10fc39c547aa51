#!/usr/bin/env bash
# Run the tests that need a CUDA device; each skips without one. Uses the environment that is active, or else .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python
if [[ -z "${VIRTUAL_ENV:-}" && -x .venv/bin/python ]]; then python=.venv/bin/python; fi
exec "$python" -m pytest tests/gpu "$@"
