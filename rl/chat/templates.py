"""Prompt templates by name: how messages and tool schemas become text before the tokenizer sees it.

A template is applied when a prompt is rendered, never at preprocessing, so that one data file serves every model.
`empty` is the tokenizer's own chat template. The others are ChatML with a tools block of Qwen's, for tokenizers whose
own template knows no tools; the tool schemas come from the tool YAML and stand nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

_CHATML = r"""
{%- set first_is_system = messages and messages[0].role == 'system' %}
{%- if tools or first_is_system %}
    {{- '<|im_start|>system\n' }}
    {%- if first_is_system %}
        {{- messages[0].content }}
    {%- endif %}
    {%- if tools %}
        [TOOLS]
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {%- set function = call.function or call %}
            [CALL]
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif not (loop.first and first_is_system) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()

_JSON_TOOLS = r"""
        {{- '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
        {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
        {%- for tool in tools %}
            {{- '\n' + (tool | tojson) }}
        {%- endfor %}
        {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments ' }}
        {{- 'within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
        {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' }}
""".strip()

_JSON_CALL = r"""
            {{- '<tool_call>\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {{- function.arguments if function.arguments is string else function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
""".strip()

_XML_TOOLS = r"""
        {{- '\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>' }}
        {%- for tool in tools %}
            {%- set function = tool.function or tool %}
            {{- '\n<function>\n<name>' + function.name + '</name>' }}
            {%- if function.description %}
                {{- '\n<description>' + (function.description | trim) + '</description>' }}
            {%- endif %}
            {{- '\n<parameters>' }}
            {%- for name, schema in ((function.parameters or {}).properties or {}).items() %}
                {{- '\n<parameter>\n<name>' + name + '</name>' }}
                {%- for key in schema %}
                    {%- set value = schema[key] if schema[key] is string else schema[key] | tojson %}
                    {{- '\n<' + key + '>' + (value | trim) + '</' + key + '>' }}
                {%- endfor %}
                {{- '\n</parameter>' }}
            {%- endfor %}
            {%- if (function.parameters or {}).required %}
                {{- '\n<required>' + (function.parameters.required | tojson) + '</required>' }}
            {%- endif %}
            {{- '\n</parameters>\n</function>' }}
        {%- endfor %}
        {{- '\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n' }}
        {{- '<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n' }}
        {{- '<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\n' }}
        {{- 'multiple lines\n</parameter>\n</function>\n</tool_call>' }}
""".strip()

_XML_CALL = r"""
            {{- '<tool_call>\n<function=' + function.name + '>\n' }}
            {%- for name, value in function.arguments.items() %}
                {%- set text = value if value is string else value | tojson %}
                {{- '<parameter=' + name + '>\n' + text + '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
""".strip()

_JSON_CHATML = _CHATML.replace("[TOOLS]", _JSON_TOOLS).replace("[CALL]", _JSON_CALL)
_XML_CHATML = _CHATML.replace("[TOOLS]", _XML_TOOLS).replace("[CALL]", _XML_CALL)


_PLAIN = """
{{- beginning_of_text }}
{%- for message in messages %}
    {{- message.content }}
    {%- if message.role == 'assistant' %}{{- eos_token }}{% endif %}
{%- endfor %}
""".strip()
"""The text alone, for base models and few-shot prompts. It stands behind what the tokenizer begins texts with, if
anything, and an answer ends with the tokenizer's end of text."""


@dataclass(slots=True, frozen=True)
class PromptTemplate:
    """How the messages of a prompt are completed and rendered."""

    chat_template: str | None
    """Jinja source as transformers' `apply_chat_template` takes it; None: the tokenizer's own."""
    default_system: str | None = None
    """System message of a prompt that has none; None adds none."""
    user_suffix: str = ""
    """Appended to each user message, inside its turn."""


_SYSTEM = "You are a helpful assistant."
_BOXED = "\nThe answer format must be: \\boxed{The final answer goes here.}"

TEMPLATES: dict[str, PromptTemplate] = {
    "empty": PromptTemplate(None),
    "qwen": PromptTemplate(_JSON_CHATML, _SYSTEM),
    "qwen_retool": PromptTemplate(_JSON_CHATML, _SYSTEM, _BOXED),
    "qwen_search_tool": PromptTemplate(_JSON_CHATML, _SYSTEM, _BOXED),
    "qwen3_coder": PromptTemplate(_XML_CHATML, _SYSTEM),
    "plain": PromptTemplate(_PLAIN),
}
"""Names a `prompt_type` may have.

The two tool templates ask for a boxed answer inside the user turn (MindSpeed-RL's, under the same names, put the
sentence behind the turn's end token). They differ from `qwen` in nothing else: the tools come from the tool YAML.
`qwen3_coder` writes tools and calls as the parser of that name reads them. `plain` has no headers and shows no tools.

Source: the text formats of Qwen2.5's chat template (Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json), which Qwen
models and the hermes tool-call format expect word for word, and of Qwen3-Coder's.
"""
