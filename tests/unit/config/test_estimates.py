"""Batch arithmetic and memory, by hand."""

from __future__ import annotations

from dataclasses import replace

from rl.config.estimates import batch_arithmetic, memory_estimate
from rl.config.model_facts import count_parameters
from rl.config.schema import Config, ModelConfig

SMALL = ModelConfig(
    model_type="llama",
    num_hidden_layers=2,
    hidden_size=4,
    intermediate_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=10,
    tie_word_embeddings=True,
)


def make_config() -> Config:
    config = Config()
    config.megatron_training.global_batch_size = 10
    config.rl_config.n_samples_per_prompt = 4
    config.rl_config.mini_batch_size = 4
    config.rl_config.epochs = 2
    config.rl_config.max_prompt_length = 100
    config.rl_config.multi_turn_enable = True
    config.rl_config.max_total_response_length = 300
    config.rl_config.max_packing_token_size = 1000
    config.rl_config.actor_resource.num_devices = 4
    config.actor_config.tensor_model_parallel_size = 2
    return config


def test_batch_arithmetic_rounds_uneven_batches_up() -> None:
    batch = batch_arithmetic(make_config())
    assert batch.num_trajectories == 40
    assert batch.num_mini_batches == 3  # 4 + 4 + 2 prompts
    assert batch.num_optimizer_steps == 6
    assert batch.trajectories_per_mini_batch == 16
    assert batch.data_parallel_size == 2
    assert batch.tokens_per_trajectory == 400
    assert batch.micro_batches_per_rank == 4  # 8 trajectories of a rank, 2 of them in 1000 tokens


def test_longest_sample_without_tools_is_the_prompt_and_one_turn() -> None:
    config = make_config()
    config.rl_config.multi_turn_enable = False
    config.generate_config.sampling_config.max_tokens = 700
    assert batch_arithmetic(config).tokens_per_trajectory == 800


def test_batch_arithmetic_gives_a_long_sample_a_micro_batch_of_its_own() -> None:
    config = make_config()
    config.rl_config.max_packing_token_size = 50
    assert batch_arithmetic(config).micro_batches_per_rank == 8


def test_count_parameters_by_hand() -> None:
    # A layer: query and output 2 * 4 * 4, key and value 2 * 4 * 2, MLP 3 * 4 * 8, norms 2 * 4: 152.
    assert count_parameters(SMALL) == 2 * 152 + 10 * 4 + 4
    assert count_parameters(replace(SMALL, tie_word_embeddings=False)) == 2 * 152 + 2 * 10 * 4 + 4


def test_count_parameters_of_the_shipped_models() -> None:
    smollm2 = ModelConfig("llama", 30, 576, 1536, 9, 3, None, 49152, True)
    assert count_parameters(smollm2) == 134_515_008
    qwen25_7b = ModelConfig("qwen2", 28, 3584, 18944, 28, 4, None, 152064, False)
    biases = 28 * (3584 + 2 * 512)
    assert count_parameters(qwen25_7b) + biases == 7_615_616_512


def test_memory_estimate_shards_optimizer_over_data_parallel_ranks() -> None:
    config = make_config()
    estimate = memory_estimate(config, SMALL)
    assert estimate.num_parameters == 348
    assert estimate.parameter_bytes == 174 * 2
    assert estimate.gradient_bytes == 174 * 4
    assert estimate.optimizer_bytes == 174 * 12 // 2
    assert estimate.reference_bytes == 0
    assert estimate.cache_bytes_per_token == 2 * 2 * 1 * 2 * 2  # keys and values, layers, heads, head size, bytes
    config.megatron_training.use_distributed_optimizer = False
    assert memory_estimate(config, SMALL).optimizer_bytes == 174 * 12


def test_memory_estimate_recomputation_keeps_one_layer() -> None:
    config = make_config()
    kept = memory_estimate(config, SMALL).activation_bytes
    config.actor_config.recompute_granularity = "full"
    # Per token of 2 bytes: two inputs of 4 in each of 2 layers, and inside one layer 2 * 4 + (2 * 3 * 2 + 3 * 8) / 2.
    assert memory_estimate(config, SMALL).activation_bytes == 1000 * 2 * (2 * 2 * 4 + 26)
    assert kept == 1000 * 2 * (2 * 2 * 4 + 2 * 26)


def test_memory_estimate_holds_a_micro_batch_for_each_pipeline_stage() -> None:
    config = make_config()
    facts = replace(SMALL, num_hidden_layers=8)
    whole = memory_estimate(config, facts).activation_bytes
    config.actor_config.pipeline_model_parallel_size = 2  # half the layers, two micro-batches
    assert memory_estimate(config, facts).micro_batches_in_flight == 2
    assert memory_estimate(config, facts).activation_bytes == whole
    config.actor_config.num_layers_per_virtual_pipeline_stage = 2  # 2 (2 - 1) + 2 + 1 passes of half a stage's layers
    assert memory_estimate(config, facts).micro_batches_in_flight == 2.5
    assert memory_estimate(config, facts).activation_bytes == whole * 5 // 4


def test_memory_estimate_holds_no_more_micro_batches_than_there_are() -> None:
    config = make_config()
    config.actor_config.pipeline_model_parallel_size = 2
    config.rl_config.max_packing_token_size = 100_000  # all of a mini-batch's trajectories in one
    assert memory_estimate(config, SMALL).micro_batches_in_flight == 1
