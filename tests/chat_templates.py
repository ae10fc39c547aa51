"""What chat templates of published models do, in templates of a few lines each, and tokenizers of both great kinds.

Each template keeps the traits that matter where text becomes token ids: what stands around a turn, what is stripped,
which thoughts are shown, kept and dropped. The words of the tools block are left out.
"""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
_CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\n' if content or not loop.first else '' }}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}"
)
_RESULT = (
    "{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' }}{{ m.content }}{{ '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
)
_OTHERS = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"

_THOUGHTFUL = (
    _TOOLS
    + "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content or '' %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if SHOWN %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ content }}" + _CALLS + "<|im_end|>\n"
    "{% elif m.role == 'tool' %}" + _RESULT + "{% else %}" + _OTHERS + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPENED{% endif %}"
)

QWEN3 = _THOUGHTFUL.replace("SHOWN", "loop.index0 > ns.last and (loop.last or thought)").replace("OPENED", "")
"""Drops thoughts before the last question, and gives an empty one to a last turn that has none."""

QWEN3_THINKING = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""The header opens the thought."""

GLM = _THOUGHTFUL.replace("SHOWN", "loop.index0 > ns.last").replace("OPENED", "")
"""Gives an empty thought to each turn without one."""

DROPPING = _THOUGHTFUL.replace("SHOWN", "loop.last and thought").replace("OPENED", "")
"""Shows the thought of the last turn alone."""

R1 = _THOUGHTFUL.replace("SHOWN", "false").replace("OPENED", "<think>\n")
"""Shows no thought, though its header opens one."""

CHATML = (
    "{% for m in messages %}" + _OTHERS + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_ALTERNATE = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = SYSTEM %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set content = system + m.content if loop.first else m.content %}"
)
LLAMA2 = (
    _ALTERNATE.replace("SYSTEM", "'<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n'")
    + "{% if m.role == 'user' %}{{ '<s>[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
"""A turn ends in a space and `</s>`; there is no header and no role for results."""

MISTRAL = (
    "<s>"
    + _ALTERNATE.replace("SYSTEM", "messages[0].content + '\n\n'")
    + "{% if m.role == 'user' %}{{ '[INST] ' + content + ' [/INST]' }}{% else %}{{ ' ' + content + '</s>' }}{% endif %}"
    "{% endfor %}"
)

LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}{% set role = 'ipython' if m.role == 'tool' else m.role %}"
    "<|start_header_id|>{{ role }}<|end_header_id|>\n\n"
    '{% if m.tool_calls %}{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Added tokens of Qwen3's tokenizer that it does not call special."""

_CORPUS = (
    "The answer is 42 and the sum of the first two numbers is three. What is 1 + 2? Let me compute that.",
    "system user assistant tool question result thought probe turnwise",
    "one two three four five\n\n  six seven\n eight nine ten",
)


def byte_level(
    template: str, *, end: str = "<|im_end|>", special: tuple[str, ...] = ("<|im_start|>",)
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `MARKS`, as Qwen's; it merges line breaks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return _finished(tokenizer, template, end, special)


def sentencepiece_like(
    template: str, *, end: str = "</s>", special: tuple[str, ...] = ("<s>",), legacy: bool
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer over SentencePiece's `▁`, as Llama 2's.

    Args:
        template: Chat template.
        end: The end of text.
        special: Further special tokens.
        legacy: A space is put before the text behind each special token, else before the text's beginning alone.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space_first = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.pre_tokenizer = space_first
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[*"▁abcdefghijklmnopqrstuvwxyz"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + text for line in _CORPUS for text in line.split("\n")] * 4, trainer)
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = []  # a byte is no token that a text can spell
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(tokenizer, template, end, special)


def _finished(tokenizer: Tokenizer, template: str, end: str, special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*special, end)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKS if t not in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, chat_template=template)
