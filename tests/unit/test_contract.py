"""Every symbol of vLLM and Megatron-Core that rl/ uses exists, and takes the arguments given to it.

Imports and direct calls are read from the source; what is called on an object or replaced inside a library is listed
here by hand. A new version of either library is judged by this test first.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "rl"
LIBRARIES = ("vllm", "megatron")

METHODS = {
    "vllm.v1.engine.async_llm:AsyncLLM.from_vllm_config": ("vllm_config", "disable_log_stats"),
    "vllm.v1.engine.async_llm:AsyncLLM.generate": ("prompt", "sampling_params", "request_id"),
    "vllm.v1.engine.async_llm:AsyncLLM.get_supported_tasks": (),
    "vllm.v1.engine.async_llm:AsyncLLM.pause_generation": ("mode",),
    "vllm.v1.engine.async_llm:AsyncLLM.resume_generation": (),
    "vllm.v1.engine.async_llm:AsyncLLM.reset_prefix_cache": (),
    "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc": ("method", "args"),
    "vllm.v1.engine.async_llm:AsyncLLM.sleep": ("level",),
    "vllm.v1.engine.async_llm:AsyncLLM.wake_up": (),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.reload_weights": ("weights_iterator",),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.get_model": (),
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown": ("timeout",),
    "vllm:AsyncEngineArgs.create_engine_config": (),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights": ("weights_iterator",),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model": (),
    "vllm.parser.engine.parser_engine_config:ParserEngineConfig.terminal_literal": ("name",),
    "vllm.model_executor.layers.linear:UnquantizedLinearMethod.apply": ("layer", "x", "bias"),
    "vllm.model_executor.layers.linear:UnquantizedLinearMethod.process_weights_after_loading": ("layer",),
    "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.apply": ("layer", "x", "bias"),
    "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.process_weights_after_loading": (
        "layer",
    ),
    "megatron.core.distributed:DistributedDataParallel.zero_grad_buffer": (),
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.get_parameters": (),
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.step_with_ready_grads": (),
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.zero_grad": (),
    "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler.get_lr": ("param_group",),
    "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler.step": ("increment",),
}

FIELDS = {
    "vllm.outputs:RequestOutput": ("request_id", "outputs"),
    "vllm.outputs:CompletionOutput": ("token_ids", "logprobs", "finish_reason"),
    "vllm.logprobs:FlatLogprobs": ("logprobs",),
    "vllm.parser.engine.parser_engine_config:ParserEngineConfig": ("terminals", "transitions"),
    "vllm.parser.engine.parser_engine_config:Transition": ("next_state",),
}
"""Attributes read of records, by the parameters or fields that make them."""


@dataclass
class Uses:
    """What one source file takes from the libraries: local name -> (module, symbol), and calls of those names."""

    path: Path
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    calls: list[tuple[str, str | None, list[str]]] = field(default_factory=list)


def uses_of(path: Path) -> Uses:
    uses = Uses(path)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            for alias in node.names:
                uses.names[alias.asname or alias.name] = (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in LIBRARIES:
                    uses.names[alias.asname or alias.name.split(".")[0]] = (alias.name, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in uses.names:
            uses.attributes.append((node.value.id, node.attr))
        if isinstance(node, ast.Call):
            keywords = [k.arg for k in node.keywords if k.arg]
            if isinstance(node.func, ast.Name) and node.func.id in uses.names:
                uses.calls.append((node.func.id, None, keywords))
            elif (
                isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in uses.names
            ):
                uses.calls.append((node.func.value.id, node.func.attr, keywords))
    return uses


def all_uses() -> Iterator[Uses]:
    for path in sorted(ROOT.rglob("*.py")):
        uses = uses_of(path)
        if uses.names:
            yield uses


def resolve(module: str, symbol: str | None) -> Any:
    if symbol is None:
        return importlib.import_module(module)
    try:
        return getattr(importlib.import_module(module), symbol)
    except AttributeError:
        return importlib.import_module(f"{module}.{symbol}")


def assert_takes(function: Any, keywords: list[str] | tuple[str, ...], where: str) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    missing = [k for k in keywords if k not in parameters]
    assert not missing, f"{where} takes no {', '.join(missing)}"


@pytest.mark.parametrize("uses", list(all_uses()), ids=lambda u: str(u.path.relative_to(ROOT)))
def test_imported_symbols_exist_and_take_the_arguments_given(uses: Uses):
    objects = {name: resolve(module, symbol) for name, (module, symbol) in uses.names.items()}
    for name, attribute in uses.attributes:
        assert hasattr(objects[name], attribute), f"{uses.names[name]} has no {attribute}"
    for name, attribute, keywords in uses.calls:
        target = objects[name] if attribute is None else getattr(objects[name], attribute)
        assert_takes(target, keywords, f"{uses.names[name]}.{attribute or ''}")


@pytest.mark.parametrize("path", METHODS)
def test_methods_exist_and_take_the_arguments_given(path: str):
    module, _, qualified = path.partition(":")
    target = importlib.import_module(module)
    for part in qualified.split("."):
        target = getattr(target, part)
    assert_takes(target, METHODS[path], path)


@pytest.mark.parametrize("path", FIELDS)
def test_records_have_the_fields_read(path: str):
    module, _, name = path.partition(":")
    assert_takes(getattr(importlib.import_module(module), name), FIELDS[path], path)


def test_both_libraries_are_looked_at():
    modules = {module.split(".")[0] for uses in all_uses() for module, _ in uses.names.values()}
    assert modules == set(LIBRARIES)


def test_packed_modules_are_named_as_the_checksum_expects():
    for module, name in (("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")):
        model = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)
        assert model.packed_modules_mapping == {
            "qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "gate_up_proj": ["gate_proj", "up_proj"],
        }
