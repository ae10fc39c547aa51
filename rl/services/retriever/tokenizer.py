"""Splits documents and queries into words.

English is split as in bm25s: runs of at least two letters or digits, in lower case, without stop words, stemmed by
Snowball. That would not find two kinds of text, which are split further:

- Scripts without spaces between words, and Hangul, whose words have endings: into pairs of adjacent characters, and
  into single ideographs and syllables, since these are words too.
- Names that are short or contain symbols: `R`, `C++`, `C#`, `.NET`, `U.S.`, `AT&T`, `3.5`. They are added to the words,
  but do not count for a document's length, so that English has the scores of bm25s.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from itertools import chain, pairwise

import Stemmer

LANGUAGE = "english"
"""Language of the stemmer."""
# fmt: off
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))
# fmt: on
"""Lucene's English stop words, which bm25s uses too."""

_WORD = re.compile(r"\w\w+")
"""Equivalent to `\\b\\w\\w+\\b` of bm25s, and faster."""
_IDEOGRAPHS = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SYLLABLES = "\uac00-\ud7a3"
_OTHER_UNSPACED = (
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f"  # kana, bopomofo
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u0f40-\u0fbc\u1000-\u103f\u1050-\u108f\u1780-\u17d3"  # Tibetan, Myanmar, Khmer
)
_UNSPACED = re.compile(f"[{_IDEOGRAPHS}{_SYLLABLES}{_OTHER_UNSPACED}]+")
_WORDS_ALONE = re.compile(f"[{_IDEOGRAPHS}{_SYLLABLES}]")
_INDIC_WORD = re.compile("[\u0900-\u0963\u0971-\u0dff]{2,}")
"""`\\w` does not match their vowel signs."""
_MARKS = {
    code: None for first, last in ((0x591, 0x5C7), (0x64B, 0x65F), (0x670, 0x670)) for code in range(first, last + 1)
}
"""Vowels of Hebrew and Arabic, which most texts omit."""
_NAME = re.compile(
    r"(?<!\w)[^\W_]+(?:\+\+|\#)(?!\w)"  # C++, C#
    r"|(?<!\w)\.[^\W\d_]\w+"  # .NET
    r"|(?<!\w)[^\W_]+(?:[.&][^\W_]+|(?<=\d),\d+)+"  # U.S, AT&T, 3.5, 1,000
    r"|(?<![\w'\u2019])[^\W_](?!\w)"  # R
)
_JOINTS = re.compile(r"[.&,]")
_NO_NAMES = ("a", "i")
_LONGEST_CACHED, _MAX_CACHED = 32, 1 << 17


class Tokenizer(threading.local):
    """Splits texts into words. Each thread has a stemmer of its own, since a stemmer is not thread-safe."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer(LANGUAGE)

    def tokenize(self, text: str) -> list[str]:
        """Find all words of a query or a document, as an index has them. Repeated words are repeated."""
        words, names = split(text)
        return self.stem([word for word in words if word not in STOP_WORDS]) + names

    def stem(self, words: list[str]) -> list[str]:
        """The stem of each word, which must be in lower case."""
        stems: list[str] = self._stemmer.stemWords(words)
        return stems


def split(text: str) -> tuple[list[str], list[str]]:
    """Split a text, without stemming.

    Returns:
        Its words, which count for its length, including stop words; and its names and single ideographs, which do not.
    """
    if text.isascii():
        text = text.lower()
        return _WORD.findall(text), _find_names(text)
    text = unicodedata.normalize("NFKC", text).lower().translate(_MARKS)
    words: list[str] = []
    names: list[str] = []
    for run in _UNSPACED.findall(text):
        words += map("".join, pairwise(run)) if len(run) > 1 else [run]
        names += _WORDS_ALONE.findall(run) if len(run) > 1 else []
    rest = _UNSPACED.sub(" ", text)
    words += _INDIC_WORD.findall(rest)
    rest = _INDIC_WORD.sub(" ", rest)
    return words + _WORD.findall(rest), names + _find_names(rest)


def _find_names(text: str) -> list[str]:
    """Find the names in each piece between spaces."""
    return list(chain.from_iterable(map(_names_of_piece.__getitem__, text.split())))


class _NameCache(dict[str, tuple[str, ...]]):
    """The names in pieces of text. Texts repeat short pieces, and `functools.lru_cache` would be 20 % slower."""

    def __missing__(self, piece: str) -> tuple[str, ...]:
        names = tuple(name for name in _NAME.findall(piece) if _is_name(name))
        if len(piece) <= _LONGEST_CACHED:
            if len(self) >= _MAX_CACHED:
                self.clear()
            self[piece] = names
        return names


_names_of_piece = _NameCache()


def _is_name(text: str) -> bool:
    """Whether the words lack this name: it has a symbol that matters, or a single letter or digit."""
    if text[0] == "." or text[-1] in "+#":
        return True
    return text not in _NO_NAMES and any(len(part) == 1 for part in _JOINTS.split(text))
