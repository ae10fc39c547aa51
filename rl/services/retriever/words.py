"""The words of a text, of documents and of queries alike.

English is cut as bm25s cuts it: runs of two letters or digits at least, in lower case, without stop words, stemmed by
Snowball. Two kinds of text would then not be found, and are cut further:

- Scripts that put no spaces between words, and Hangul, whose words have endings: into each two neighbouring characters;
  and into single ideographs and syllables, since these are words too.
- Names that are short or hold symbols: `R`, `C++`, `C#`, `.NET`, `U.S.`, `AT&T`, `3.5`. They come beside the words, and
  do not count for a document's length, so that English has the scores of bm25s.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import Stemmer

LANGUAGE = "english"
"""Of the stemmer."""
# fmt: off
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))
# fmt: on
"""Lucene's of English, which bm25s has too."""

_WORD = re.compile(r"\w\w+")
"""Finds what bm25s finds by `\\b\\w\\w+\\b`, sooner."""
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
"""Their vowel signs are no letters to `\\w`."""
_MARKS = {
    code: None for first, last in ((0x591, 0x5C7), (0x64B, 0x65F), (0x670, 0x670)) for code in range(first, last + 1)
}
"""Vowels of Hebrew and Arabic, which few texts write."""
_NAME = re.compile(
    r"(?<!\w)[^\W_]+(?:\+\+|\#)(?!\w)"  # C++, C#
    r"|(?<!\w)\.[^\W\d_]\w+"  # .NET
    r"|(?<!\w)[^\W_]+(?:[.&][^\W_]+|(?<=\d),\d+)+"  # U.S, AT&T, 3.5, 1,000
    r"|(?<![\w'\u2019])[^\W_](?!\w)"  # R
)
_JOINTS = re.compile(r"[.&,]")
_NO_NAMES = ("a", "i")
_LONGEST_REMEMBERED, _MOST_REMEMBERED = 32, 1 << 17
_names_of_piece: dict[str, tuple[str, ...]] = {}


class WordFinder:
    """Finds the words of texts. Not for several threads at once."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer(LANGUAGE)

    def find(self, text: str) -> list[str]:
        """Find all words by which a text is found.

        Args:
            text: A query, or a document.

        Returns:
            The words as an index holds them, as often as they occur.
        """
        words, names = split(text)
        return self.stem([word for word in words if word not in STOP_WORDS]) + names

    def stem(self, words: list[str]) -> list[str]:
        """Reduce words to their stems.

        Args:
            words: In lower case.

        Returns:
            A stem for each.
        """
        stems: list[str] = self._stemmer.stemWords(words)
        return stems


def split(text: str) -> tuple[list[str], list[str]]:
    """Cut a text.

    Args:
        text: Any.

    Returns:
        Its words, which make up its length, stop words among them; and its names and single ideographs, which do not.
        Nothing is stemmed yet, and names never are.
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
    """No name holds a space, and most texts have few different pieces between spaces: those are remembered."""
    found: list[str] = []
    for piece in text.split():
        names = _names_of_piece.get(piece)
        if names is None:
            names = tuple(name for name in _NAME.findall(piece) if _is_name(name))
            if len(piece) <= _LONGEST_REMEMBERED:
                if len(_names_of_piece) >= _MOST_REMEMBERED:
                    _names_of_piece.clear()
                _names_of_piece[piece] = names
        found += names
    return found


def _is_name(text: str) -> bool:
    """Whether it says what its words do not: it holds a symbol that matters, or a letter or digit alone."""
    if text[0] == "." or text[-1] in "+#":
        return True
    return text not in _NO_NAMES and any(len(part) == 1 for part in _JOINTS.split(text))
