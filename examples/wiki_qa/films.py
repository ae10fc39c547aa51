"""Films of bokeh_sampledata's movies.db (facts of Wikidata), and articles about them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from examples.data_files import download_wheel

PACKAGE = "bokeh_sampledata==2026.1"
DATABASE = "bokeh_sampledata/_data/movies.db"
MIN_REVIEWS = 10


@dataclass(slots=True, frozen=True)
class Film:
    """Facts about a film. Directors, writers, cast, genres and countries are names with commas in between, or empty."""

    number: int
    title: str
    year: int
    director: str
    writer: str
    cast: str
    genre: str
    country: str
    is_known: bool
    """At least `MIN_REVIEWS` reviews."""


def load_films() -> list[Film]:
    """Load all films with a title and a year."""
    with download_wheel(PACKAGE) as wheel:
        return list(read_films(wheel.read(DATABASE)))


def read_films(database: bytes) -> Iterator[Film]:
    """Read the films of an SQLite database with bokeh's tables `omdb` and `tomatoes`."""
    connection = sqlite3.connect(":memory:")
    connection.deserialize(database)
    texts = ", ".join(f"coalesce(o.\"{name}\", '')" for name in ("Director", "Writer", "Cast", "Genre", "Country"))
    rows = connection.execute(
        f"SELECT o.ID, Title, Year, {texts}, coalesce(Reviews, 0) >= {MIN_REVIEWS} "
        "FROM omdb o JOIN tomatoes t ON o.ID = t.ID WHERE Title > '' AND Year > 0 ORDER BY o.ID"
    )
    for *facts, is_known in rows:
        yield Film(*facts, is_known=bool(is_known))
    connection.close()


def describe(film: Film) -> dict[str, str]:
    """Write the article of a film: a paragraph of facts, and one about the cast."""
    genre = f"{film.genre.lower().replace(', ', ' and ')} film".strip()
    first = f"{film.title} is a {film.year} {genre}"
    for words, fact in ((" from", film.country), (", directed by", film.director), (" and written by", film.writer)):
        first += f"{words} {fact}" if fact else ""
    text = f"{first}.\nThe cast are {film.cast}." if film.cast else f"{first}."
    return {"id": f"film-{film.number}", "title": film.title, "text": text}
