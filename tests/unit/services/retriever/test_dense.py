from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from rl.errors import ServiceError
from rl.services.retriever.encoder import Encoder
from rl.services.retriever.server import open_backend

WORDS = {"[PAD]": 0, "[UNK]": 1, "q": 2, "cat": 3, "dog": 4, "bird": 5}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=6, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    words = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    rows = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 4, "do_lower_case": true}')
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q "}}')
    pooling(folder, pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    return folder


def pooling(folder: Path, **config: object) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))


def states(folder: Path, text: str) -> torch.Tensor:
    """Last hidden states of one text alone, [tokens, 16]."""
    ids = torch.tensor([[WORDS[word] for word in text.split()]])
    with torch.inference_mode():
        return BertModel.from_pretrained(folder).eval()(ids).last_hidden_state[0]


def test_encoder_pools_the_tokens_of_each_text_alone(model: Path) -> None:
    texts = ["cat", "Dog bird cat bird dog dog", "bird cat"]  # padded together, and the second is cut to 4
    cut = ["cat", "dog bird cat bird", "bird cat"]
    expected = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "lasttoken": lambda rows: rows[-1]}
    for mode, pool in expected.items():
        pooling(model, pooling_mode=mode)
        vectors = torch.from_numpy(Encoder(model).encode_documents(texts))
        for vector, text in zip(vectors, cut, strict=True):
            whole = pool(states(model, text))
            torch.testing.assert_close(vector, whole / whole.norm(), atol=1e-5, rtol=0)


def test_encoder_puts_the_prompt_before_queries(model: Path) -> None:
    encoder = Encoder(model)
    both = encoder.encode_queries(["cat"]), encoder.encode_documents(["q cat"])
    torch.testing.assert_close(*map(torch.from_numpy, both))


def test_encoder_refuses_what_it_does_not_know(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="is not a sentence-transformers model"):
        Encoder(tmp_path)
    pooling(model, pooling_mode_max_tokens=True)
    with pytest.raises(ServiceError, match=r"must pool all tokens by one of cls, mean, lasttoken, got max\."):
        Encoder(model)
    (model / "modules.json").write_text('[{"path": "", "type": "a.Transformer"}, {"path": "", "type": "a.Dense"}]')
    with pytest.raises(ServiceError, match="and optionally Normalize, got Transformer, Dense"):
        Encoder(model)


def test_open_index_finds_the_nearest_and_is_made_again_for_another_model(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"contents": text}) + "\n" for text in ("q cat", "bird dog", "q dog")))
    index = open_backend("dense", corpus, model=model)
    assert [[hit.row for hit in hits][:1] for hits in index.search_batch(["dog", "cat"], 2)] == [[2], [0]]
    (hits,) = index.search_batch(["dog"], 9)
    assert sorted(hit.row for hit in hits) == [0, 1, 2]
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert json.loads(index.document(1))["contents"] == "bird dog"
    manifest = tmp_path / "c.jsonl.dense/manifest.json"
    built = manifest.read_bytes(), manifest.stat().st_mtime_ns
    open_backend("dense", corpus, model=model)
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == built
    pooling(model, pooling_mode="cls")
    open_backend("dense", corpus, model=model)
    assert manifest.read_bytes() != built[0]
