"""Sources of the search recipe's texts: two packages of the package index, read without installing them."""

from __future__ import annotations

import bz2
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import mwparserfromhell

from examples.data_files import download_wheel

WIKIPEDIA = "gensim==4.4.0"
"""Its test data contain part of a Wikipedia dump (text: CC BY-SA)."""
DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
COUNTRIES = "countryinfo==1.0.1"
PASSAGE_WORDS = 40
_REFERENCE = re.compile(r"<ref[^>]*/>|<ref.*?</ref>", re.DOTALL)


@dataclass(slots=True, frozen=True)
class Country:
    """Facts about a country; each has one value."""

    code: str
    """ISO 3166 alpha-3."""
    name: str
    capital: str
    subregion: str
    demonym: str
    area: str
    """Square kilometres."""
    currency: str
    """ISO 4217."""
    calling_code: str
    domain: str


def load_countries() -> list[Country]:
    """Load the countries of countryinfo that `read_countries` accepts."""
    return read_countries(load_country_records())


def load_country_records() -> list[dict[str, Any]]:
    """Load countryinfo's records, in the order of their files."""
    with download_wheel(COUNTRIES) as wheel:
        files = [name for name in wheel.namelist() if name.startswith("countryinfo/data/") and name.endswith(".json")]
        return [json.loads(wheel.read(name)) for name in sorted(files)]


def read_countries(rows: list[dict[str, Any]]) -> list[Country]:
    """Select the countries with exactly one value of each fact, whose name and capital occur only once among all.

    Args:
        rows: countryinfo's records.
    """
    found = [country for country in map(_read_country, rows) if country is not None]
    names = [name for country in found for name in (country.name, country.capital)]
    return [c for c in found if names.count(c.name) == names.count(c.capital) == 1]


def _read_country(row: dict[str, Any]) -> Country | None:
    texts = {key: row.get(key) for key in ("name", "capital", "subregion", "demonym")}
    currencies, calling_codes, domains = (row.get(key) or [] for key in ("currencies", "callingCodes", "tld"))
    code, area = (row.get("ISO") or {}).get("alpha3"), row.get("area") or 0.0
    is_whole = all(isinstance(text, str) and text for text in texts.values()) and code and domains and area >= 1
    if not is_whole or len(currencies) != 1 or len(calling_codes) != 1:
        return None
    return Country(
        code=code,
        area=f"{area:.0f}",
        currency=currencies[0],
        calling_code=calling_codes[0],
        domain=domains[0],
        **texts,
    )


def load_passages() -> list[dict[str, str]]:
    """Load the articles of gensim's part of Wikipedia, split into passages."""
    with download_wheel(WIKIPEDIA) as wheel:
        return list(read_passages(wheel.read(DUMP)))


def read_passages(dump: bytes) -> Iterator[dict[str, str]]:
    """Split the articles of a dump into passages.

    Args:
        dump: bz2-compressed MediaWiki XML.

    Yields:
        Rows of a corpus: `id`, the article's `title`, and a `text` of at most `PASSAGE_WORDS` words.
    """
    for article in read_articles(dump):
        words = article["text"].split()
        for start in range(0, len(words), PASSAGE_WORDS):
            passage = " ".join(words[start : start + PASSAGE_WORDS])
            yield {"id": f"{article['id']}-{start}", "title": article["title"], "text": passage}


def load_articles() -> list[dict[str, str]]:
    """Load the articles of gensim's part of Wikipedia."""
    with download_wheel(WIKIPEDIA) as wheel:
        return list(read_articles(wheel.read(DUMP)))


def read_articles(dump: bytes) -> Iterator[dict[str, str]]:
    """Read the articles of a dump.

    Args:
        dump: bz2-compressed MediaWiki XML.

    Yields:
        Rows of a corpus: `id`, `title` and the whole plain `text`, with its line breaks.
    """
    for _, page in ElementTree.iterparse(io.BytesIO(bz2.decompress(dump))):
        if not page.tag.endswith("}page"):
            continue
        number, title, text = (page.findtext(f"{{*}}{path}") or "" for path in ("id", "title", "revision/{*}text"))
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            plain = mwparserfromhell.parse(_REFERENCE.sub("", text)).strip_code()
            yield {"id": f"wiki-{number}", "title": title, "text": plain}
        page.clear()
