"""Environment variables that vLLM and OpenMP read at process start; `rl.cluster.launch` sets them.

Does not import vllm or torch, so that the driver can use it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rl.config.schema import Config, Device


def engine_environment(config: Config, cores: tuple[int, ...], sockets: Path) -> dict[str, str]:
    """Build the variables for the process that creates a `VllmEngine`.

    Args:
        config: Reads `megatron_training.device` and `generate_config.enforce_eager`.
        cores: Cores for the engine; empty on CUDA, or to let vLLM choose.
        sockets: Folder with a short path for the sockets between vLLM's processes; vLLM does not delete them.

    Returns:
        Names and values. Set them before Python starts, because the dynamic linker reads one of them.
    """
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": str(sockets),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.megatron_training.device is Device.CUDA or not cores:
        return variables
    if config.generate_config.enforce_eager is not False:
        variables["TORCHDYNAMO_DISABLE"] = "1"  # otherwise vLLM's sampler compiles for 20 s at the first request
    return variables | _openmp_environment(cores)


def _openmp_environment(cores: tuple[int, ...]) -> dict[str, str]:
    """Bind threads to cores; use Intel's OpenMP if installed, because its idle threads soon free the cores."""
    listed = ",".join(str(core) for core in cores)
    variables = {"VLLM_CPU_OMP_THREADS_BIND": listed}
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if library.exists():
        variables["LD_PRELOAD"] = str(library)
    return variables
