"""Encodes texts with a sentence-transformers model, using only torch and transformers.

A model's folder lists its modules in modules.json: a transformer, a pooling over its tokens, and optionally a
normalization. Models with other modules (a dense layer, word embeddings) are refused.

Source: the file layout of sentence-transformers (Reimers and Gurevych, arXiv:1908.10084).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from rl.errors import ServiceError

_BATCH = 64
_MODULES = ("Transformer", "Pooling", "Normalize")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class Encoder:
    """A model that maps texts with similar meaning to similar vectors."""

    def __init__(self, folder: Path) -> None:
        """Load the model, onto a GPU if there is one.

        Args:
            folder: Folder of a sentence-transformers model.

        Raises:
            ServiceError: The folder is not such a model, or its modules or its similarity are not supported.
        """
        modules = _read_modules(folder)
        inner = folder / modules["Transformer"]
        settings = _read_json(inner / "sentence_bert_config.json")
        self._tokenizer = AutoTokenizer.from_pretrained(inner)
        self._max_length = settings.get("max_seq_length") or min(self._tokenizer.model_max_length, 512)
        self._is_lowered = bool(settings.get("do_lower_case"))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModel.from_pretrained(inner, dtype=torch.float32).to(self._device).eval()
        self._pool = _find_pooling(folder / modules["Pooling"])
        whole = _read_json(folder / "config_sentence_transformers.json")
        similarity = whole.get("similarity_fn_name") or "cosine"
        if similarity not in ("cosine", "dot"):
            raise ServiceError(f"{folder}: must compare by cosine or dot, got '{similarity}'. Give another model.")
        self._is_normalized = "Normalize" in modules or similarity == "cosine"
        prompts = whole.get("prompts") or {}
        default = prompts.get(whole.get("default_prompt_name"), "")
        self._query_prompt: str = prompts.get("query", default)
        self._document_prompt: str = next((prompts[key] for key in _DOCUMENT_PROMPTS if key in prompts), default)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of queries, [N, width]. The inner product with a document's vector is the score."""
        return self._encode([self._query_prompt + text for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of documents, [N, width]. Longer texts than the model accepts are cut."""
        return self._encode([self._document_prompt + text for text in texts])

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        texts = [text.encode(errors="replace").decode() for text in texts]
        texts = [text.lower() for text in texts] if self._is_lowered else texts
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # similar lengths need little padding
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        vectors = np.concatenate([self._encode_batch([texts[number] for number in batch]) for batch in batches])
        return vectors[np.argsort(order)]

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str]) -> NDArray[np.float32]:
        given = self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt")
        given = given.to(self._device)
        states = self._model(**given).last_hidden_state
        pooled = self._pool(states, given["attention_mask"])
        if self._is_normalized:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors: NDArray[np.float32] = pooled.float().cpu().numpy()
        return vectors


def _read_modules(folder: Path) -> dict[str, str]:
    """Folder of each module by the name of its class."""
    try:
        modules = {
            entry["type"].rpartition(".")[2]: entry["path"] for entry in json.loads(_text(folder, "modules.json"))
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ServiceError(
            f"{folder}: is not a sentence-transformers model, modules.json: {error}. Correct --model."
        ) from error
    unknown = [name for name in modules if name not in _MODULES]
    if unknown or not {"Transformer", "Pooling"} <= modules.keys():
        raise ServiceError(
            f"{folder}: must have Transformer, Pooling and optionally Normalize, got {', '.join(modules)}. "
            "Give another model."
        )
    return modules


def _find_pooling(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    config = _read_json(folder / "config.json")
    given = config.get("pooling_mode") or [key for key, value in config.items() if value is True and "_mode_" in key]
    names = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in _listed(given)
    ]
    if len(names) != 1 or names[0] not in _POOLINGS or config.get("include_prompt", True) is False:
        raise ServiceError(
            f"{folder}: must pool all tokens by one of {', '.join(_POOLINGS)}, got {', '.join(names) or 'nothing'}. "
            "Give another model."
        )
    return _POOLINGS[names[0]]


def _pool_first(states: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(states), device=states.device)
    return states[rows, mask.argmax(dim=1)]


def _pool_mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _pool_last(states: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(states), device=states.device)
    return states[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]


_POOLINGS = {"cls": _pool_first, "mean": _pool_mean, "lasttoken": _pool_last}


def _listed(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """Empty if there is no such file."""
    if not path.is_file():
        return {}
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
