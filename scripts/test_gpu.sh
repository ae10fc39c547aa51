#!/usr/bin/env bash
# Run the tests that need a CUDA device, small ones first: kernels, offloading, actor, engine, a whole run. A test is skipped
# with a reason if a package is missing (vLLM, Megatron-Core, Ray). Uses the active environment, or else .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python
if [[ -z "${VIRTUAL_ENV:-}" && -x .venv/bin/python ]]; then python=.venv/bin/python; fi
"$python" - <<'END'
import importlib.metadata as metadata

import torch

for name in ("torch", "transformers", "megatron-core", "vllm", "ray"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index), f"{torch.cuda.get_device_properties(index).total_memory / 1024**3:.0f} GiB")
END
tests=(tests/gpu/test_{kernels,offload,actor,engine,run}_cuda.py)
exec "$python" -m pytest -rs "${tests[@]}" "$@"
