"""What vLLM and its OpenMP read from the environment before a process starts; `rl.cluster.launch` sets it.

Imports neither vllm nor torch, so that the driver can ask.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rl.config.schema import Config, Device


def engine_environment(config: Config, cores: tuple[int, ...], sockets: Path) -> dict[str, str]:
    """Variables for the process that will create a `VllmEngine`.

    Args:
        config: The run's configuration.
        cores: Cores the engine may use; empty on CUDA, or to let vLLM choose.
        sockets: Folder for the sockets between vLLM's processes, which vLLM leaves there; its path is short.

    Returns:
        Names and values; to be set before Python starts, as the dynamic linker reads one of them.
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
        variables["TORCHDYNAMO_DISABLE"] = "1"  # else vLLM's sampler compiles for 20 s at the first request
    return variables | _openmp_environment(cores)


def _openmp_environment(cores: tuple[int, ...]) -> dict[str, str]:
    """Intel's OpenMP bound to the cores; threads sleep soon after a parallel region, as the actor wants the cores."""
    listed = ",".join(str(core) for core in cores)
    variables = {"VLLM_CPU_OMP_THREADS_BIND": listed}
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if library.exists():
        variables["LD_PRELOAD"] = str(library)
    return variables
