#!/usr/bin/env bash
# Train a tiny model with clients of other packages, each in an environment of its own, through one `rl serve`.
# The environments are made with pip and kept in TURNWISE_CLIENTS_CACHE. Arguments go to pytest:
#     TURNWISE_CLIENTS_CACHE=~/.cache/turnwise-clients bash scripts/test_clients.sh -k litellm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python -m pytest tests/clients "$@"
