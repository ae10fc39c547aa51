"""vLLM's own OpenAI server with the engine that a configuration describes, for comparisons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp
import psutil

from rl.config.schema import Config
from rl.errors import TurnwiseError
from rl.inference.environment import engine_environment

_START_S = 300.0
_KERNELS = ["turnwise_cpu"]
MODEL = "served"
"""Name of the model in requests."""


@contextmanager
def vllm_server(
    config: Config, *, port: int, cores: tuple[int, ...], folder: Path, niceness: int
) -> Iterator[tuple[str, psutil.Process]]:
    """Run `vllm.entrypoints.openai.api_server` during the block; gives its address and its process.

    The engine is that of `rl.inference.engine`: dtype, limits, cache, cores, and kernels are the same.

    Args:
        config: Reads `generate_config` and `actor_config.load`.
        port: A free port.
        cores: Cores for the engine.
        folder: For its sockets and its log.
        niceness: Of its processes.

    Raises:
        TurnwiseError: It did not start, or ended.
    """
    generate, address, log = config.generate_config, f"http://127.0.0.1:{port}", folder / "vllm.log"
    command = ["nice", "-n", str(niceness)]
    command += [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", config.actor_config.load, "--served-model-name", MODEL, "--dtype", generate.dtype]
    command += ["--max-model-len", str(generate.max_model_len), "--max-num-seqs", str(generate.max_num_seqs)]
    command += ["--max-num-batched-tokens", str(max(generate.max_num_batched_tokens, generate.max_model_len))]
    command += ["--kv-cache-memory-bytes", str(int(generate.kv_cache_memory_gb * (1 << 30))), "--block-size", "32"]
    command += ["--no-enable-chunked-prefill", "--enforce-eager", "--generation-config", "vllm"]
    command += ["--enable-prefix-caching" if generate.enable_prefix_caching else "--no-enable-prefix-caching"]
    command += ["--worker-extension-cls", "rl.inference.worker_extension.WorkerExtension"]
    command += ["--ir-op-priority", json.dumps({"rms_norm": _KERNELS, "fused_add_rms_norm": _KERNELS})]
    command += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    environment = os.environ | engine_environment(config, cores, folder)
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    try:
        _wait_until_healthy(process, address, log)
        yield address, psutil.Process(process.pid)
    except aiohttp.ClientConnectionError as error:
        raise TurnwiseError(f"bench serve: vLLM's server ended. It ended with:\n{_end_of(log)}") from error
    finally:
        _end(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise TurnwiseError(f"bench serve: vLLM's server did not start. It ended with:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its engine is a child in the same group."""
    for one in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, one)
            process.wait(15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
