from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.errors import ServiceError
from rl.services.retriever.corpus import Document, check_corpus, count_rows, iter_chunks, read_chunk


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def iter_documents(*corpus: Path) -> Iterator[Document]:
    check_corpus(corpus)
    for chunk in iter_chunks(corpus):
        documents = list(read_chunk(chunk))
        assert len(documents) == chunk.num_documents
        yield from documents


def read(*corpus: Path) -> list[dict]:
    documents = list(iter_documents(*corpus))
    bodies = [json.loads(document.encoded) for document in documents]
    assert [body["contents"] for body in bodies] == [document.contents for document in documents]
    assert not any(b"\n" in document.encoded for document in documents)
    return bodies


def test_iter_documents_takes_both_forms_and_keeps_other_columns(tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "corpus.jsonl",
        '{"id": "7", "contents": "Rome\\nA city."}',
        "",
        '{"id": 8, "title": "Łódź", "text": "Another.", "url": "x"}',
        '{"contents": "No id"}',
    )
    assert read(corpus) == [
        {"id": "7", "contents": "Rome\nA city."},
        {"id": 8, "title": "Łódź", "url": "x", "contents": "Łódź\nAnother."},
        {"id": "2", "contents": "No id"},
    ]


def test_iter_documents_reads_parquet_as_jsonl(tmp_path: Path) -> None:
    rows = [{"id": "0", "title": "A", "text": "b"}, {"id": "1", "title": "C", "text": "d"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus.parquet")
    lines = write(tmp_path / "corpus.jsonl", *map(json.dumps, rows))
    assert read(tmp_path / "corpus.parquet") == read(lines)
    assert (count_rows([tmp_path / "corpus.parquet"]), count_rows([lines, lines])) == (2, 4)


def test_iter_documents_reads_several_files_as_one_and_in_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "a.jsonl", '{"contents": "a"}', "", '{"contents": "b"}', '{"contents": "c"}')
    pq.write_table(pa.Table.from_pylist([{"contents": text} for text in "def"]), tmp_path / "b.parquet")
    files = (first, tmp_path / "b.parquet", write(tmp_path / "c.jsonl", "", '{"contents": "g"}', "{"))
    for size in (1, 20, 1 << 20):
        monkeypatch.setattr("rl.services.retriever.corpus.CHUNK_BYTES", size)
        monkeypatch.setattr("rl.services.retriever.corpus._CHUNK_ROWS", size)
        assert [(d["id"], d["contents"]) for d in read(*files[:2])] == [(str(n), "abcdef"[n]) for n in range(6)]
        with pytest.raises(ServiceError, match=r"c\.jsonl: line 3 is not JSON"):
            read(*files)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "1", "contents": "a"', "line 3 is not JSON"),
        ('{"contents": ' + "[" * 100_000, "line 3 is not JSON"),
        ('["a"]', "line 3 must be an object with 'contents', got \\['a'\\]"),
        ('{"id": "1", "text": "a"}', "line 3 needs 'contents', or 'title' and 'text', as texts; it has id, text"),
        ('{"id": "1", "contents": 5}', "line 3 needs 'contents'"),
        ('{"id": "1", "contents": "\\ud800"}', "line 3 cannot be sent as JSON"),
        ("\udcff", "line 3 is not JSON"),
    ],
)
def test_iter_documents_names_the_malformed_line(tmp_path: Path, line: str, problem: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(b'{"contents": "a"}\n\n' + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(ServiceError, match=problem):
        list(iter_documents(corpus))


def test_iter_documents_refuses_what_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"corpus.txt: unknown file type '.txt'. Give one of .jsonl, .parquet"):
        list(iter_documents(tmp_path / "corpus.txt"))
    with pytest.raises(ServiceError, match="no such corpus"):
        list(iter_documents(tmp_path / "corpus.jsonl"))
    with pytest.raises(ServiceError, match="has no document"):
        list(iter_documents(write(tmp_path / "corpus.jsonl", "")))
    with pytest.raises(ServiceError, match="is not a parquet file"):
        list(iter_documents(write(tmp_path / "corpus.parquet", "PAR?")))
    with pytest.raises(ServiceError, match=r"twice.jsonl: is listed twice\. List every file of the corpus once\."):
        list(iter_documents(*[write(tmp_path / "twice.jsonl", "")] * 2))
