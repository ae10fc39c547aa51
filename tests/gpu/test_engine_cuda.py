"""vLLM on a CUDA device with CUDA graphs: the engines' contract, sleep, publish, log-probs against the actor."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rl.config.schema import Config, Device
from rl.errors import RolloutError
from rl.types import Sampling, WeightUpdate
from rl.weight_sync.shared_memory import publish
from tests.engine_contract import check_engine
from tests.gpu.cuda import NEEDS_BFLOAT16, make_model, needs

pytestmark = [NEEDS_BFLOAT16, needs("vllm")]

SHARE = 0.3


def engine_config(folder: Path) -> Config:
    config = Config()
    config.actor_config.load = str(folder)
    config.megatron_training.device = Device.CUDA
    generate = config.generate_config
    generate.gpu_memory_utilization, generate.max_num_seqs = SHARE, 16
    generate.max_model_len = generate.max_num_batched_tokens = 2048
    return config


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from rl.inference.environment import engine_environment

    with tempfile.TemporaryDirectory() as sockets:
        for name, value in engine_environment(engine_config(Path()), (), Path(sockets)).items():
            monkeypatch.setenv(name, value)
        yield


def tensors_of(folder: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    return {name: tensor * scale for name, tensor in state.items() if name != "lm_head.weight"}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])  # vLLM has two model runners, chosen by the family
def test_engine_fulfills_the_contract_sleeps_and_uses_published_weights(family: str, tmp_path: Path) -> None:
    from rl.inference.engine import VllmEngine

    folder = make_model(tmp_path / "model", family)
    weights, prompt = tensors_of(folder), list(range(20, 60))

    async def publish_version(version: int, scale: float = 1.0) -> WeightUpdate:
        sent = {name: tensor * scale for name, tensor in weights.items()}
        shard = publish(iter(sent.items()), tmp_path, version=version, with_checksum=True)
        return WeightUpdate(version, (str(shard.path),), shard.checksum)

    async def run() -> None:
        engine = await VllmEngine.create(engine_config(folder), model_folder=folder, replica=0, seed=1)
        try:
            await check_engine(engine, publish_version, long=1500)
            before = await engine.generate(prompt, Sampling(0.0, 24), session_id="before")
            awake, total = torch.cuda.mem_get_info()
            await engine.sleep()
            asleep, _ = torch.cuda.mem_get_info()
            assert asleep - awake > 0.8 * SHARE * total
            with pytest.raises(RolloutError, match="it is asleep and has no weights until the next publish"):
                await engine.generate(prompt, Sampling(0.0, 4), session_id="asleep")
            await engine.update_weights(await publish_version(4))  # read back and compared by the checksum
            again = await engine.generate(prompt, Sampling(0.0, 24), session_id="again")
            assert again.token_ids.tolist() == before.token_ids
            assert again.logprobs.tolist() == pytest.approx(before.logprobs, abs=0.02)
            await engine.update_weights(await publish_version(5, scale=0.5))  # awake
            other = await engine.generate(prompt, Sampling(0.0, 24), session_id="other")
            assert other.logprobs.tolist() != pytest.approx(before.logprobs, abs=0.02)
            assert other.policy_version == 5
        finally:
            await engine.shutdown()

    asyncio.run(asyncio.wait_for(run(), 500))


@needs("megatron")
def test_logprobs_of_engine_and_actor_agree_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.config.load import load_config
    from tests.e2e.test_logprobs import measure

    folder = make_model(tmp_path / "model")
    settings = {
        "actor_config.load": folder, "megatron_training.data_path": tmp_path,
        "megatron_training.eval_data_path": tmp_path, "megatron_training.output_dir": tmp_path,
        "megatron_training.device": "cuda", "megatron_training.bf16": "true", "generate_config.dtype": "bfloat16",
        "generate_config.gpu_memory_utilization": SHARE,
    }  # fmt: skip
    configs = Path(__file__).resolve().parents[1] / "e2e/configs"
    config = load_config("tiny", [f"{key}={value}" for key, value in settings.items()], config_dir=configs)
    for temperature, difference in measure(config, monkeypatch).items():
        assert len(difference) > 500
        assert float(difference.abs().mean()) < 0.05, temperature
