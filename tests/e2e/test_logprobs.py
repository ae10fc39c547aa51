"""Log-probs of vLLM against Megatron's, of the same tokens: trajectories of two turns with a tool's result between."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.config.load import load_config
from rl.config.schema import Config
from rl.inference.engine import VllmEngine
from rl.inference.environment import engine_environment
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import load_dialog
from rl.rollout.headers import rows_of
from rl.training.actor import Actor
from rl.types import Prompt, Sampling, ToolCall, Trajectory
from tests.fakes import answering
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
REAL_MODEL = ROOT / "models/SmolLM2-135M-Instruct"
TEMPERATURES = (1.0, 0.7)
QUESTIONS = ("What is 17 + 25?", "Count the primes below 30.", "Sort: pear, fig, apple.", "Is 91 prime? Say why.")

pytestmark = pytest.mark.timeout(300)


class CallsAlways:
    """Finds a call in every turn, so that each trajectory has two turns."""

    stop: tuple[str, ...] = ()

    def parse(self, text: str) -> list[ToolCall]:
        return [ToolCall("code_interpreter", {"code": "print(42)"})]

    def render(self, call: ToolCall) -> str:
        return ""


async def sample(config: Config) -> dict[float, list[Trajectory]]:
    """Sixteen trajectories of up to 48 tokens a turn at each temperature."""
    dialog = load_dialog(config, tool_overrides={"code_interpreter": {"sandbox_fusion_url": "http://127.0.0.1:9"}})
    stops = dialog.renderer.end_of_turn_ids
    folder = Path(config.actor_config.load)
    engine = await VllmEngine.create(config, model_folder=folder, replica=0, seed=1, stop_token_ids=stops)
    loop = AgentLoop(engine, dialog.renderer, answering("42\n"), CallsAlways(), config)
    prompts = [Prompt(f"q{i}", [{"role": "user", "content": q}], "", "test") for i, q in enumerate(QUESTIONS)]
    try:
        return {
            temperature: await asyncio.gather(
                *(loop.run(p, k, Sampling(temperature, max_tokens=48, seed=3)) for p in prompts for k in range(4))
            )
            for temperature in TEMPERATURES
        }
    finally:
        await engine.shutdown()


def differences(config: Config, sampled: dict[float, list[Trajectory]]) -> dict[float, Tensor]:
    """The actor's log-prob of each sampled token minus the engine's, by temperature."""
    found = {}
    with Actor(config, loss="reference") as actor:
        layout = replace(packing_layout(config, num_data_parallel=1), mini_batch_prompts=len(QUESTIONS))
        for temperature, trajectories in sampled.items():
            (mini_batch,) = pack_samples(rows_of(trajectories), layout).mini_batches
            micros = mini_batch.micro_batches[0]
            actor.objective = replace(actor.objective, temperature=temperature)
            pairs = zip(micros, actor.compute_logprobs(micros), strict=True)
            found[temperature] = torch.cat([(own - m.rollout_logprobs)[m.loss_mask > 0] for m, own in pairs])
    return found


def measure(config: Config, monkeypatch: pytest.MonkeyPatch) -> dict[float, Tensor]:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as sockets:
        for name, value in engine_environment(config, cores, Path(sockets)).items():
            monkeypatch.setenv(name, value)
        sampled = asyncio.run(sample(config))
    for trajectories in sampled.values():
        assert all(len(t.turns) == 2 and t.turns[0].results[0].text == "42\n" for t in trajectories)
    return differences(config, sampled)


def test_logprobs_of_engine_and_actor_agree_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_tiny_model(tmp_path / "model", "qwen2", tied=True, num_heads=2, num_kv_heads=1)
    paths = {"load": ("actor_config", tmp_path / "model"), "data_path": ("megatron_training", tmp_path)}
    paths |= dict.fromkeys(("eval_data_path", "output_dir"), ("megatron_training", tmp_path))
    overrides = [f"{section}.{key}={path}" for key, (section, path) in paths.items()]
    config = load_config("tiny", overrides, config_dir=Path(__file__).parent / "configs")
    for temperature, difference in measure(config, monkeypatch).items():
        assert len(difference) > 500
        assert float(difference.abs().max()) < 1e-4, temperature


@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="the 135M model is not there (tools/fetch_model.py)")
def test_logprobs_of_engine_and_actor_agree_in_bfloat16_on_the_real_model(monkeypatch: pytest.MonkeyPatch):
    overrides = [f"actor_config.load={REAL_MODEL}", "generate_config.kv_cache_memory_gb=0.25"]
    for temperature, difference in measure(load_config("dapo_smollm2_135m_retool", overrides), monkeypatch).items():
        assert len(difference) > 500
        assert float(difference.abs().mean()) < 0.05, temperature
