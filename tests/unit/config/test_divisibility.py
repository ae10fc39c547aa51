"""Heads, layers and devices that do not divide evenly."""

from __future__ import annotations

import pytest

from rl.config.divisibility import devices_fault, engine_fault, head_groups_fault, pipeline_fault, tensor_fault
from rl.config.model_facts import head_size
from rl.config.schema import ModelConfig

MODEL = ModelConfig(num_attention_heads=12, num_key_value_heads=4, intermediate_size=18, hidden_size=48)


@pytest.mark.parametrize(
    ("tp", "fault"),
    [
        (1, None),
        (2, None),
        (3, "must divide 12 attention heads and 4 key-value heads, got 3. Set one of 1, 2."),
        (4, "must divide 18 feed-forward channels, got 4. Set one of 1, 2."),
    ],
)
def test_tensor_parallel_ranks_share_heads_and_channels(tp: int, fault: str | None) -> None:
    expected = fault and f"actor_config.tensor_model_parallel_size: {fault}"
    assert tensor_fault(MODEL, tp) == expected


@pytest.mark.parametrize(
    ("pp", "chunk", "fault"),
    [
        (3, None, None),
        (3, 2, None),
        (5, None, "pipeline_model_parallel_size: must divide 12 layers, got 5. Set one of 1, 2, 3, 4, 6, 12."),
        (
            2,
            4,
            "num_layers_per_virtual_pipeline_stage: must divide the 6 layers of a pipeline rank, got 4. "
            "Set one of 1, 2, 3, 6.",
        ),
    ],
)
def test_pipeline_ranks_share_layers_in_whole_chunks(pp: int, chunk: int | None, fault: str | None) -> None:
    expected = fault and f"actor_config.{fault}"
    assert pipeline_fault(12, pp=pp, layers_per_chunk=chunk) == expected


def test_devices_make_up_whole_replicas() -> None:
    assert devices_fault(8, tp=2, pp=2) is None
    assert devices_fault(6, tp=2, pp=2) == (
        "rl_config.actor_resource.num_devices: must be a multiple of tensor (2) times pipeline (2) parallel size, "
        "got 6. Set 4, or change the parallel sizes."
    )


def test_engines_copy_key_value_heads_but_not_attention_heads() -> None:
    assert engine_fault(MODEL, 12) is None
    assert engine_fault(MODEL, 6) == (
        "generate_config.infer_tensor_parallel_size: must divide 12 attention heads, got 6. Set one of 1, 2, 4."
    )


def test_key_value_heads_serve_equally_many_attention_heads() -> None:
    assert head_groups_fault(MODEL) is None
    model = ModelConfig(num_attention_heads=12, num_key_value_heads=5)
    assert head_groups_fault(model) == "num_key_value_heads: must divide 12 num_attention_heads, got 5. Correct it."


def test_head_size_is_said_or_follows_from_the_width() -> None:
    assert head_size(MODEL) == 4
    assert head_size(ModelConfig(num_attention_heads=12, hidden_size=48, head_dim=64)) == 64
