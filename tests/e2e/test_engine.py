"""The real engine, on a tiny random model in float32, against transformers."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rl.chat.parsers import PARSERS
from rl.config.schema import Config, Device
from rl.errors import DataError, ModelError, RolloutError, WeightSyncError, WorkerDiedError
from rl.inference.engine import VllmEngine
from rl.inference.environment import engine_environment
from rl.serving.required_call import required_call
from rl.types import FinishReason, Generation, Sampling, WeightUpdate
from rl.weight_sync.shared_memory import publish
from tests.engine_contract import check_engine
from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

PROMPT = list(range(20, 60))
MAX_MODEL_LEN = 512


def tiny_config() -> Config:
    config = Config()
    config.megatron_training.device = Device.CPU
    generate = config.generate_config
    generate.dtype, generate.max_model_len, generate.max_num_seqs = "float32", MAX_MODEL_LEN, 16
    generate.max_num_batched_tokens, generate.kv_cache_memory_gb = 1024, 0.25
    return config


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        cores = tuple(sorted(os.sched_getaffinity(0)))
        with tempfile.TemporaryDirectory() as sockets:
            for name, value in engine_environment(tiny_config(), cores, Path(sockets)).items():
                patch.setenv(name, value)
            yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), "qwen2", hidden_size=128, num_heads=4, tied=True)


@pytest.fixture(scope="module")
def reference(folder) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine.create(tiny_config(), model_folder=folder, replica=0, seed=1)
    yield engine
    await engine.shutdown()


def tensors_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def logprobs(model: PreTrainedModel, prompt: list[int], sampled: list[int], temperature: float) -> torch.Tensor:
    logits = model(torch.tensor([prompt + sampled])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(sampled)[:, None])[:, 0]


def assert_logprobs_agree(model: PreTrainedModel, prompt: list[int], result: Generation, temperature: float) -> None:
    expected = logprobs(model, prompt, result.token_ids, temperature)
    assert torch.allclose(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


async def test_engine_greedy_equals_transformers(engine, reference):
    result = await engine.generate(PROMPT, Sampling(0.0, 24), session_id="greedy")
    assert result.token_ids == greedy(reference, PROMPT, 24)
    assert_logprobs_agree(reference, PROMPT, result, 1.0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_engine_logprobs_are_of_the_distribution_sampled_from(engine, reference, temperature):
    prompts = [[*PROMPT[i:], i] for i in range(8)]
    sampling = [Sampling(temperature, 32, seed=i) for i in range(8)]
    results = await asyncio.gather(
        *(engine.generate(p, s, session_id=str(i)) for i, (p, s) in enumerate(zip(prompts, sampling, strict=True)))
    )
    for prompt, result in zip(prompts, results, strict=True):
        assert_logprobs_agree(reference, prompt, result, temperature)


async def test_engine_writes_nothing_but_a_required_call(engine, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parameters = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("add", "subtract")]
    parser = PARSERS["hermes"]
    for seed in range(4):
        tag = required_call(tools, parser, is_single=True)
        result = await engine.generate(PROMPT, Sampling(1.0, 100, seed=seed, structural_tag=tag), session_id="call")
        text = tokenizer.decode(result.token_ids, skip_special_tokens=True)
        (call,) = parser.parse(text)
        assert result.finish_reason is FinishReason.STOP
        assert (call.error, call.name in ("add", "subtract"), call.arguments["x"] in (1, 2)) == (None, True, True)
        assert text.startswith("<tool_call>") and text.endswith("</tool_call>")


async def test_engine_follows_a_json_schema_and_refuses_one_that_is_none(engine, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for seed in range(3):
        sampling = Sampling(1.0, 40, seed=seed, json_schema='{"enum": ["yes", "no"]}')
        result = await engine.generate(PROMPT, sampling, session_id="schema")
        assert tokenizer.decode(result.token_ids, skip_special_tokens=True) in ('"yes"', '"no"')
    with pytest.raises(DataError, match="json_schema"):
        await engine.generate(PROMPT, Sampling(1.0, 8, json_schema='{"type": "nonsense"}'), session_id="schema")
    assert (await engine.generate(PROMPT, Sampling(0.0, 4), session_id="after")).token_ids


async def test_engine_repeats_a_seeded_request_in_any_batch(engine):
    request = Sampling(1.0, 24, seed=7)
    alone = await engine.generate(PROMPT, request, session_id="alone")
    crowd = [engine.generate(PROMPT[i:], Sampling(1.0, 24, seed=i), session_id=f"crowd{i}") for i in range(7)]
    together, *others = await asyncio.gather(engine.generate(PROMPT, request, session_id="s"), *crowd)
    assert together.token_ids == alone.token_ids
    assert others[0].token_ids != alone.token_ids


async def test_engine_stops_at_a_stop_string_without_changing_tokens(engine, reference):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reference.config.name_or_path)
    expected = greedy(reference, PROMPT, 12)
    text = tokenizer.decode(expected[4:5])
    first = next(i for i in range(12) if text in tokenizer.decode(expected[: i + 1]))
    result = await engine.generate(PROMPT, Sampling(0.0, 12, stop=(text,)), session_id="stop")
    assert result.token_ids == expected[: first + 1]
    assert result.finish_reason is FinishReason.STOP


async def test_engine_survives_more_prompt_tokens_than_fit_in_one_pass(engine):
    """Chunked prefill of seeded requests kills vLLM 0.32 on the CPU, so prompts must not be chunked."""
    prompts = [[10 + i] * 300 for i in range(8)]
    results = await asyncio.gather(
        *(engine.generate(p, Sampling(1.0, 4, seed=i), session_id=f"long{i}") for i, p in enumerate(prompts))
    )
    assert all(len(r.token_ids) == 4 for r in results)


async def test_engine_rejects_a_prompt_that_is_too_long(engine):
    with pytest.raises(RolloutError, match="rejected a request of 600 tokens"):
        await engine.generate([5] * 600, Sampling(0.0, 4), session_id="too long")
    assert (await engine.generate(PROMPT, Sampling(0.0, 4), session_id="after")).token_ids


async def test_engine_fulfills_the_contract(engine, reference, tmp_path):
    async def publish_same(version: int) -> WeightUpdate:
        shard = publish(iter(tensors_of(reference).items()), tmp_path, version=version)
        return WeightUpdate(version, (str(shard.path),))

    await check_engine(engine, publish_same)


async def test_engine_computes_with_published_weights(engine, reference, tmp_path):
    """The prefix cache of the old weights is dropped too: the engine has seen this prompt before."""
    old = greedy(reference, PROMPT, 24)
    await engine.generate(PROMPT, Sampling(0.0, 24), session_id="before")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    shard = publish(iter(tensors_of(reference).items()), tmp_path, version=4, with_checksum=True)
    await engine.update_weights(WeightUpdate(4, (str(shard.path),), shard.checksum))
    result = await engine.generate(PROMPT, Sampling(0.0, 24), session_id="after")
    assert result.token_ids == greedy(reference, PROMPT, 24) != old
    assert result.policy_version == 4
    assert_logprobs_agree(reference, PROMPT, result, 1.0)


async def test_engine_rejects_weights_that_differ_from_the_checksum(engine, reference, tmp_path):
    sent = dict(tensors_of(reference))
    shard = publish(iter(sent.items()), tmp_path, version=5, with_checksum=True)
    name = "model.layers.1.self_attn.k_proj.weight"
    sent[name] = sent[name].clone()
    sent[name][3, 5] += 1e-4
    changed = publish(iter(sent.items()), tmp_path, version=5)
    with pytest.raises(WeightSyncError, match="version 5 differ from those published"):
        await engine.update_weights(WeightUpdate(5, (str(changed.path),), shard.checksum))
    with pytest.raises(RolloutError, match="version 5 did not load"):
        await engine.generate(PROMPT, Sampling(0.0, 4), session_id="broken")
    shard = publish(iter(tensors_of(reference).items()), tmp_path, version=6, with_checksum=True)
    await engine.update_weights(WeightUpdate(6, (str(shard.path),), shard.checksum))
    assert (await engine.generate(PROMPT, Sampling(0.0, 4), session_id="mended")).policy_version == 6


async def test_engine_names_a_stale_file(engine, reference, tmp_path):
    shard = publish(iter(tensors_of(reference).items()), tmp_path, version=6)
    with pytest.raises(WeightSyncError, match="must have version 7, got 6"):
        await engine.update_weights(WeightUpdate(7, (str(shard.path),)))
    await engine.update_weights(WeightUpdate(6, (str(shard.path),)))


async def test_engine_reports_its_death_and_leaves_no_process(engine):
    children = psutil.Process().children(recursive=True)
    processes = {p.name(): p for p in children if p.name().startswith("VLLM")}  # others may be other tests'
    running = asyncio.ensure_future(engine.generate(PROMPT, Sampling(0.0, 400), session_id="dying"))
    await asyncio.sleep(0)
    processes["VLLM::Worker"].kill()
    with pytest.raises(RolloutError, match="died"):
        await asyncio.wait_for(running, 60)
        await engine.generate(PROMPT, Sampling(0.0, 400), session_id="dead")
    with pytest.raises(WorkerDiedError, match="rollout engine 0: died while loading weights"):
        await asyncio.wait_for(engine.update_weights(WeightUpdate(7, ())), 10)
    await engine.shutdown()
    _, alive = psutil.wait_procs(processes.values(), timeout=10)
    assert not alive


async def test_engine_names_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        await VllmEngine.create(tiny_config(), model_folder=tmp_path, replica=0, seed=1)
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ModelError, match="vLLM cannot load this model"):
        await VllmEngine.create(tiny_config(), model_folder=tmp_path, replica=0, seed=1)


async def test_engine_gives_the_reason_when_memory_is_short(folder):
    config = tiny_config()
    config.generate_config.kv_cache_memory_gb = 100_000.0
    with pytest.raises(RolloutError, match="less than requested memory for kv"):
        await VllmEngine.create(config, model_folder=folder, replica=0, seed=1)
