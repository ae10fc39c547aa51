"""vLLM's AsyncLLM as an `Engine`: token ids in, sampled ids and their log-probs out, weights replaced while it runs."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from rl.config.schema import Config, Device
from rl.errors import ModelError, RolloutError, WeightSyncError
from rl.types import FinishReason, Generation, Sampling, WeightUpdate

logger = logging.getLogger(__name__)

_WORKER_EXTENSION = "rl.inference.worker_extension.WorkerExtension"
_GIB = 1 << 30
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


class VllmEngine:
    """One engine replica; make it with `create`.

    vLLM runs its scheduler and its workers in child processes, which `shutdown` ends.
    """

    def __init__(self, llm: AsyncLLM, *, name: str, stop_token_ids: Sequence[int], on_cuda: bool) -> None:
        self.name = name
        self.policy_version = 0
        self._llm = llm
        self._stop_token_ids = list(stop_token_ids)
        self._on_cuda = on_cuda
        self._request_numbers = itertools.count()
        self._updating = asyncio.Lock()
        self._accepting = asyncio.Event()
        self._accepting.set()

    @classmethod
    async def create(
        cls,
        config: Config,
        *,
        model_folder: Path,
        replica: int,
        seed: int,
        stop_token_ids: Sequence[int] = (),
    ) -> VllmEngine:
        """Start vLLM and load a model; takes 20 s and more.

        Args:
            config: `generate_config` and `megatron_training.device` are read.
            model_folder: A Hugging Face model folder.
            replica: Number of the replica, for messages.
            seed: Of requests that bring none.
            stop_token_ids: Tokens that end a turn, besides the model's own end of sequence.

        Raises:
            ModelError: vLLM cannot load the model folder.
            RolloutError: vLLM did not start, for example for want of memory.
        """
        name = f"rollout engine {replica}"
        if not (model_folder / "config.json").is_file():
            raise ModelError(f"{model_folder}: no config.json there. Give a Hugging Face model folder.")
        on_cuda = _runs_on_cuda(config)
        try:
            arguments = _engine_arguments(config, model_folder, seed=seed, on_cuda=on_cuda)
            llm = await asyncio.to_thread(_start, arguments)
        except (RuntimeError, ValueError, OSError) as error:
            raise _start_error(name, model_folder, error) from error
        await llm.get_supported_tasks()  # cached from here on, so that `generate` submits without waiting
        return cls(llm, name=name, stop_token_ids=stop_token_ids, on_cuda=on_cuda)

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """Continue `token_ids`; see `rl.interfaces.Engine`."""
        request_id = f"{session_id}#{next(self._request_numbers)}"
        params = _sampling_params(sampling, self._stop_token_ids)
        await self._accepting.wait()
        version = self.policy_version
        output = None
        try:
            async for output in self._llm.generate(tokens_input(token_ids), params, request_id):
                pass
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._died("generating", error) from error
        except ValueError as error:
            raise RolloutError(f"{self.name}: refuses a request of {len(token_ids)} tokens, got '{error}'.") from error
        assert output is not None, "vLLM ends every request with an output"
        return _as_generation(output, version)

    async def update_weights(self, update: WeightUpdate) -> None:
        """Replace the weights; see `rl.interfaces.Engine`.

        Requests in flight come back with `FinishReason.ABORT` and what they have; requests made meanwhile wait and run
        under the new version. With `update.checksum` the loaded weights are read back and compared.
        """
        async with self._updating:
            self._accepting.clear()
            try:
                await self._llm.pause_generation(mode="abort")
                await self._llm.collective_rpc("load_published", args=(list(update.paths), update.version))
                if not await self._llm.reset_prefix_cache():
                    raise WeightSyncError(
                        f"{self.name}: vLLM kept its prefix cache at version {update.version}, so old and new weights "
                        "would mix. Set generate_config.enable_prefix_caching=false and report it."
                    )
                if update.checksum is not None:
                    await self._verify(update)
                self.policy_version = update.version
                await self._llm.resume_generation()
            except EngineDeadError as error:
                raise self._died("loading weights", error) from error
            except RuntimeError as error:  # how a failure inside a worker arrives
                raise WeightSyncError(
                    f"{self.name}: could not load version {update.version}, got '{error}'. See this engine's log."
                ) from error
            finally:
                self._accepting.set()

    async def sleep(self) -> None:
        """Free the accelerator's memory; nothing on CPU."""
        if self._on_cuda:
            await self._llm.sleep(level=1)

    async def wake_up(self) -> None:
        """Undo `sleep`; nothing on CPU."""
        if self._on_cuda:
            await self._llm.wake_up()

    async def shutdown(self) -> None:
        """End vLLM's processes; a second call does nothing."""
        await asyncio.to_thread(self._llm.shutdown, 5.0)

    async def _verify(self, update: WeightUpdate) -> None:
        checksums = await self._llm.collective_rpc("loaded_checksum")
        if any(found != update.checksum for found in checksums):
            raise WeightSyncError(
                f"{self.name}: the weights of version {update.version} did not arrive as sent: checksum {checksums[0]}, "
                f"sent {update.checksum}. The exported names or values differ from what vLLM loaded; compare the "
                "published file in shared memory with the model folder."
            )

    def _died(self, doing: str, error: Exception) -> RolloutError:
        return RolloutError(f"{self.name}: died while {doing}, got '{error}'. The cause is in this engine's log.")


def _engine_arguments(config: Config, model_folder: Path, *, seed: int, on_cuda: bool) -> AsyncEngineArgs:
    generate = config.generate_config
    device: dict[str, Any] = (
        {"gpu_memory_utilization": generate.gpu_memory_utilization, "enable_sleep_mode": True}
        if on_cuda
        else {
            "kv_cache_memory_bytes": int(generate.kv_cache_memory_gb * _GIB),
            # A partial prefill of a seeded request winds its generator back, which vLLM 0.32 does in a way that
            # kills the engine on CPU ("CPU Generator does not use offset"). So prompts are never cut.
            "enable_chunked_prefill": False,
        }
    )
    return AsyncEngineArgs(
        model=str(model_folder),
        dtype=generate.dtype,
        seed=seed,
        tensor_parallel_size=generate.infer_tensor_parallel_size,
        max_model_len=generate.max_model_len,
        max_num_seqs=generate.max_num_seqs,
        max_num_batched_tokens=max(generate.max_num_batched_tokens, generate.max_model_len),
        enforce_eager=generate.enforce_eager,
        enable_prefix_caching=generate.enable_prefix_caching,
        trust_remote_code=generate.trust_remote_code,
        generation_config="vllm",  # ignores the folder's generation_config.json, whose top_p and top_k would bias training
        logprobs_mode="processed_logprobs",
        worker_extension_cls=_WORKER_EXTENSION,
        disable_log_stats=True,
        **device,
    )


def _start(arguments: AsyncEngineArgs) -> AsyncLLM:
    return AsyncLLM.from_engine_args(arguments)


def _sampling_params(sampling: Sampling, stop_token_ids: list[int]) -> SamplingParams:
    has_stop_strings = bool(sampling.stop)
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=max(sampling.top_k, 0),
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=list(sampling.stop) if has_stop_strings else None,
        stop_token_ids=stop_token_ids,
        include_stop_str_in_output=has_stop_strings,
        detokenize=has_stop_strings,
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _as_generation(output: RequestOutput, version: int) -> Generation:
    completion = output.outputs[0]
    reason = _FINISH_REASONS.get(completion.finish_reason or "")
    if reason is None:
        raise RolloutError(f"{output.request_id}: vLLM ended it for reason '{completion.finish_reason}'.")
    token_ids = list(completion.token_ids)
    logprobs = list(completion.logprobs.logprobs[: len(token_ids)]) if token_ids else []
    return Generation(token_ids, logprobs, reason, version)


def _runs_on_cuda(config: Config) -> bool:
    device = config.megatron_training.device
    return torch.cuda.is_available() if device is Device.AUTO else device is Device.CUDA


def _start_error(name: str, model_folder: Path, error: Exception) -> RolloutError | ModelError:
    return RolloutError(f"{name}: vLLM did not start with {model_folder}, got '{error}'.")
