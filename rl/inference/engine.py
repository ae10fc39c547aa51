"""vLLM's AsyncLLM as an `Engine`: token ids in, sampled ids and log-probs out; weights are replaced while it runs."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from rl.config.device import enforces_eager, runs_on_cuda
from rl.config.schema import Config
from rl.errors import DataError, ModelError, RolloutError, WeightSyncError, WorkerDiedError
from rl.inference.output_tail import first_error, tail_of_output
from rl.observability.busy_clock import BusyClock
from rl.types import FinishReason, Generation, Sampling, WeightUpdate

logger = logging.getLogger(__name__)

_WORKER_EXTENSION = "rl.inference.worker_extension.WorkerExtension"
_CPU_KERNELS = "turnwise_cpu"
"""Provider name in `rl.inference.cpu_kernels`. Only vLLM's workers import that module; this process must not."""

_CPU_BLOCK_SIZE = 32
"""Tokens per KV-cache block, the smallest size at which the kernels run at full speed. The prefix cache only reuses
whole blocks: with vLLM's default of 128, the next turn recomputes up to 127 tokens."""

_ALIVE_CHECK_S = 1.0
"""Interval between checks that the engine is alive."""
_GIB = 1 << 30
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}

T = TypeVar("T")


class VllmEngine:
    """One engine replica, created with `create`.

    vLLM runs its scheduler and workers in child processes. `shutdown` ends them.
    """

    def __init__(
        self, llm: AsyncLLM, *, name: str, stop_token_ids: Sequence[int], on_cuda: bool, holds_requests: bool = False
    ) -> None:
        self.name = name
        self.policy_version = 0
        self.busy = BusyClock()
        """Runs while vLLM has at least one request."""
        self._unusable: str | None = None
        """Reason why requests are rejected."""
        self._is_asleep = False
        self._llm = llm
        self._stop_token_ids = list(stop_token_ids)
        self._on_cuda = on_cuda
        self._holds_requests = holds_requests
        """Requests in flight when it goes to sleep are carried over to the next publish."""
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
        """Start vLLM and load a model; this takes 20 s or more.

        Args:
            config: Reads `generate_config` and `megatron_training.device`.
            model_folder: A Hugging Face model folder.
            replica: Number of the replica, for messages.
            seed: Default seed for requests without one.
            stop_token_ids: Tokens that end a turn, in addition to the model's end-of-sequence token.

        Raises:
            ModelError: vLLM cannot load the model folder.
            RolloutError: vLLM did not start, for example because memory ran out.
        """
        name = f"rollout engine {replica}"
        if not (model_folder / "config.json").is_file():
            raise ModelError(f"{model_folder}: config.json is missing. Name a Hugging Face model folder.")
        on_cuda = runs_on_cuda(config)
        llm = await asyncio.to_thread(_start, config, model_folder, name=name, seed=seed, on_cuda=on_cuda)
        await llm.get_supported_tasks()  # caches them, so that `generate` submits without waiting
        return cls(
            llm,
            name=name,
            stop_token_ids=stop_token_ids,
            on_cuda=on_cuda,
            holds_requests=config.rl_config.runs_ahead,
        )

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """Continue `token_ids`; see `rl.interfaces.Engine`."""
        request_id = f"{session_id}#{next(self._request_numbers)}"
        try:
            params = _sampling_params(sampling, self._stop_token_ids)
        except ValueError as error:
            raise DataError(
                f"{self.name}: the engine refuses the sampling parameters ({error}). Correct them."
            ) from error
        await self._accepting.wait()
        if self._unusable is not None:
            raise RolloutError(f"{self.name}: cannot generate: {self._unusable}.")
        version, final = self.policy_version, None
        try:
            with self.busy:
                async for output in self._llm.generate(tokens_input(token_ids), params, request_id):
                    final = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._died("generating", error) from error
        except VLLMClientError as error:
            if sampling.json_schema is not None or sampling.structural_tag is not None:
                raise DataError(f"json_schema: the engine cannot follow it ({error}). Simplify the schema.") from error
            raise RolloutError(f"{self.name}: rejected a request of {len(token_ids)} tokens, got '{error}'.") from error
        assert final is not None, "vLLM ends every request with an output"
        return _as_generation(final, version)

    async def update_weights(self, update: WeightUpdate) -> None:
        """Replace the weights and wake up from `sleep`; see `rl.interfaces.Engine`.

        Requests in flight return their partial output with `FinishReason.ABORT`. New requests wait and run under the
        new version. With `update.checksum` the loaded weights are read back and compared. After a failure the engine
        rejects requests until an update succeeds.
        """
        async with self._updating:
            self._accepting.clear()
            self._unusable = f"its weights are incomplete, because version {update.version} did not load"
            try:
                await self._replace_weights(update)
                self.policy_version, self._unusable = update.version, None
            finally:
                self._accepting.set()

    def metrics(self) -> list[Metric]:
        """VLLM's own metrics (requests running and waiting, cache use, latencies); empty without `prometheus_port`.

        Reads counters in this process, so the engine is not disturbed; may be called from another thread.
        """
        own = [metric for metric in REGISTRY.collect() if metric.name.startswith("vllm:")]
        for metric in own:
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        return own

    async def sleep(self) -> None:
        """Free the accelerator's memory; see `rl.interfaces.Engine`."""
        if not self._on_cuda:
            return
        async with self._updating:
            if self._holds_requests:
                self._accepting.clear()  # they go on after the next publish
                await self._await_alive(self._llm.pause_generation(mode="abort"), "going to sleep")
            self._unusable = "it is asleep and has no weights until the next publish"
            # Level 1 would copy the weights to the host, but the next publish replaces them anyway.
            await self._await_alive(self._llm.sleep(level=2), "going to sleep")
            self._is_asleep = True

    async def shutdown(self) -> None:
        """Stop vLLM's processes; a second call does nothing."""
        llm, self._llm = self._llm, None  # its destructor fails where the interpreter has ended
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, 5.0)

    async def _replace_weights(self, update: WeightUpdate) -> None:
        if self._is_asleep:
            await self._await_alive(self._llm.wake_up(), "waking up")
            self._is_asleep = False
        await self._await_alive(self._llm.pause_generation(mode="abort"))
        await self._call_workers("load_published", list(update.paths), update.version)
        if not await self._await_alive(self._llm.reset_prefix_cache()):
            raise WeightSyncError(
                f"{self.name}: vLLM kept its prefix cache at version {update.version}, so old and new weights would "
                "mix. Set generate_config.enable_prefix_caching=false and report it."
            )
        if update.checksum is not None:
            found = await self._call_workers("loaded_checksum")
            if any(checksum != update.checksum for checksum in found):
                raise WeightSyncError(
                    f"{self.name}: the weights of version {update.version} differ from those published, got checksum "
                    f"{found[0]}, published {update.checksum}. Compare names and values in {', '.join(update.paths)} "
                    "with the model folder: a tensor is missing, duplicated or changed."
                )
        await self._await_alive(self._llm.resume_generation())

    async def _call_workers(self, method: str, *arguments: Any) -> list[Any]:
        try:
            results: list[Any] = await self._await_alive(self._llm.collective_rpc(method, args=arguments))
        except WorkerDiedError:
            raise
        except Exception as error:  # vLLM raises a bare Exception for any failure in a worker
            raise WeightSyncError(
                f"{self.name}: a worker could not run {method}, got '{error}'. The traceback is in this engine's log."
            ) from error
        return results

    async def _await_alive(self, call: Awaitable[T], doing: str = "loading weights") -> T:
        """Await a call to vLLM, but fail if the engine dies; the call itself would then wait forever."""
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=_ALIVE_CHECK_S))[0]:
                if self._llm.errored:
                    raise EngineDeadError
            return task.result()
        except EngineDeadError as error:
            raise self._died(doing, error) from error
        finally:
            task.cancel()

    def _died(self, doing: str, error: Exception) -> WorkerDiedError:
        return WorkerDiedError(f"{self.name}: died while {doing}, got '{error}'. The cause is in this engine's log.")


def _engine_arguments(config: Config, model_folder: Path, *, seed: int, on_cuda: bool) -> AsyncEngineArgs:
    generate = config.generate_config
    device: dict[str, Any] = (
        {"gpu_memory_utilization": generate.gpu_memory_utilization, "enable_sleep_mode": True}
        if on_cuda
        else {
            "kv_cache_memory_bytes": int(generate.kv_cache_memory_gb * _GIB),
            # With chunked prefill, vLLM 0.32 rewinds the generator of a seeded request. On the CPU this kills the
            # engine ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
            "block_size": _CPU_BLOCK_SIZE,
            "ir_op_priority": {"rms_norm": [_CPU_KERNELS], "fused_add_rms_norm": [_CPU_KERNELS]},
        }
    )
    return AsyncEngineArgs(
        model=str(model_folder),
        dtype=generate.dtype,
        seed=seed,
        tensor_parallel_size=generate.infer_tensor_parallel_size,
        # Run workers as child processes on the devices visible here. By default vLLM detects Ray's placement group and
        # puts the workers of every engine on the group's first devices.
        distributed_executor_backend="mp" if generate.infer_tensor_parallel_size > 1 else None,
        max_model_len=generate.max_model_len,
        max_num_seqs=generate.max_num_seqs,
        max_num_batched_tokens=max(generate.max_num_batched_tokens, generate.max_model_len),
        enforce_eager=enforces_eager(config),
        enable_prefix_caching=generate.enable_prefix_caching,
        trust_remote_code=generate.trust_remote_code,
        generation_config="vllm",  # the folder's top_p and top_k would bias training
        logprobs_mode="processed_logprobs",
        worker_extension_cls=_WORKER_EXTENSION,
        disable_log_stats=config.megatron_training.prometheus_port is None,
        **device,
    )


def _start(config: Config, model_folder: Path, *, name: str, seed: int, on_cuda: bool) -> AsyncLLM:
    """Start vLLM's processes; blocks until the model is loaded."""
    try:
        arguments = _engine_arguments(config, model_folder, seed=seed, on_cuda=on_cuda)
        vllm_config = arguments.create_engine_config()
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{model_folder}: vLLM cannot load this model, got '{error}'. Check the folder.") from error
    with tail_of_output() as lines:
        try:
            return AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=arguments.disable_log_stats)
        except (RuntimeError, ValueError, OSError) as error:
            failure = error
    reason = first_error(lines) or str(failure)
    raise RolloutError(
        f"{name}: vLLM did not start with {model_folder}, got '{reason}'. If memory is short, lower generate_config."
        f"{'gpu_memory_utilization' if on_cuda else 'kv_cache_memory_gb'}; the traceback is in this engine's log."
    ) from failure


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
        stop_token_ids=[*stop_token_ids, *sampling.stop_token_ids],
        include_stop_str_in_output=has_stop_strings,
        detokenize=has_stop_strings,
        skip_special_tokens=not has_stop_strings,  # a stop string may contain a special token
        logprobs=0,  # only that of the sampled token
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=_structured_outputs(sampling),
    )


def _structured_outputs(sampling: Sampling) -> StructuredOutputsParams | None:
    if sampling.json_schema is None and sampling.structural_tag is None:
        return None
    return StructuredOutputsParams(json=sampling.json_schema, structural_tag=sampling.structural_tag)


def _as_generation(output: RequestOutput, version: int) -> Generation:
    completion = output.outputs[0]
    reason = _FINISH_REASONS.get(completion.finish_reason or "")
    if reason is None:
        raise RolloutError(f"{output.request_id}: unexpected finish reason of vLLM, got '{completion.finish_reason}'.")
    token_ids = list(completion.token_ids)
    logprobs = list(completion.logprobs.logprobs[: len(token_ids)]) if token_ids else []
    return Generation(token_ids, logprobs, reason, version)
