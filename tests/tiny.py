"""A random model of under a million parameters and a small ChatML tokenizer, as real Hugging Face folders.

Nothing here is downloaded. `make_tiny_model` writes what `from_pretrained`, vLLM and `rl.training` read: config.json,
safetensors (one file or shards), a fast tokenizer with a chat template that knows tools, generation_config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{%- set ns = namespace(open=false) -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{{- messages[0].content if messages[0].role == 'system' else 'You are a helpful assistant.' -}}
{{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": ' -}}
{{- '<args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'tool' -%}
{%- if not ns.open -%}{{- '<|im_start|>user' -}}{%- endif -%}
{%- set ns.open = not loop.last and messages[loop.index].role == 'tool' -%}
{{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' -}}
{%- if not ns.open -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- elif message.role == 'assistant' and message.tool_calls -%}
{{- '<|im_start|>assistant' ~ ('\\n' ~ message.content if message.content else '') -}}
{%- for call in message.tool_calls -%}
{%- set function = call.function if call.function is defined else call -%}
{{- '\\n<tool_call>\\n{"name": "' ~ function.name ~ '", "arguments": ' -}}
{{- (function.arguments if function.arguments is string else function.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_CORPUS = (
    "You are a helpful assistant. system user assistant tool",
    "# Tools You may call one or more functions to assist with the user query.",
    '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "print(1 + 2)"}}\n</tool_call>',
    "<tool_response>\n3\n</tool_response> The answer is \\boxed{42}. What is 17 * 23? Think step by step.",
    "for each function call, return a json object with function name and arguments within XML tags",
    "import math\nfor i in range(10):\n    print(i, math.sqrt(i))",
    "0123456789 the sum of the first and the second number, then divide by three",
    "A researcher reads the code when a curve looks wrong, so keep every formula short, exact and honest.",
    "Count how many prime numbers lie between twelve and ninety, and check the remainder of each division twice.",
)


def make_tiny_tokenizer(folder: Path, *, vocab_size: int = 512) -> Path:
    """Write a byte-level BPE tokenizer with ChatML special tokens and a chat template with tools.

    Args:
        folder: Made where it does not exist.
        vocab_size: Entries at most, specials included; at least 259 (256 bytes and three specials).

    Returns:
        `folder`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
    return folder


def make_tiny_model(
    folder: Path,
    family: str = "qwen2",
    *,
    vocab_size: int = 512,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float32,
    hidden_size: int = 64,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    max_shard_size: str = "1GB",
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """Write a random model and its tokenizer; norms and biases are random too, so that a mix-up of names shows.

    Args:
        folder: Made where it does not exist.
        family: `llama`, `qwen2`, `qwen2-untied` or `qwen3`.
        vocab_size: Rows of the embedding.
        tied: Whether embedding and head are one matrix; by default only `qwen2-untied` and `qwen3` are untied.
        dtype: The type of the saved tensors.
        hidden_size: A multiple of `num_heads`.
        num_layers: Layers.
        num_heads: Query heads.
        num_kv_heads: Key-value heads.
        max_shard_size: A small one such as `100KB` writes several safetensors files and an index.
        seed: The seed of the weights.
        **config_overrides: Further fields of the transformers config, `rope_parameters` for example.

    Returns:
        `folder`.
    """
    config = _tiny_config(
        family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=family in ("llama", "qwen2") if tied is None else tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
        **config_overrides,
    )
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    torch.random.set_rng_state(generator_state)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    make_tiny_tokenizer(folder, vocab_size=min(vocab_size, 512))
    return folder


def _tiny_config(family: str, **fields: Any) -> PretrainedConfig:
    if family == "llama":
        return LlamaConfig(**fields)
    if family in ("qwen2", "qwen2-untied"):
        return Qwen2Config(**fields)
    if family == "qwen3":
        return Qwen3Config(head_dim=fields["hidden_size"] // fields["num_attention_heads"] * 2, **fields)
    raise ValueError(f"make_tiny_model: family '{family}'. One of llama, qwen2, qwen2-untied, qwen3.")
