"""Documents about countries and places, and claims that need two of them or four."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, frozen=True)
class Place:
    """A province or capital. Its document names its country, and says nothing else about it."""

    name: str
    kind: str
    """`province` or `capital`."""


@dataclass(slots=True, frozen=True)
class Land:
    """A country. Its document names none of its places."""

    name: str
    subregion: str
    currency: str
    """ISO 4217."""
    num_neighbours: int
    population: int
    places: list[Place] = field(default_factory=list)


FACTS: dict[str, tuple[str, Callable[[Land], str]]] = {
    "subregion": ("belongs to {}", lambda land: land.subregion),
    "currency": ("has the currency {}", lambda land: land.currency),
    "neighbours": ("has {} neighbours", lambda land: str(land.num_neighbours)),
}
"""What claims say about a country: the wording, and the value. Several countries share each value."""


def read_lands(rows: Iterable[dict[str, Any]]) -> list[Land]:
    """Read the countries that have every fact, and their places.

    Args:
        rows: countryinfo's records.

    Returns:
        Countries in the order of the rows. Names of countries and places occur once among all of them.
    """
    lands = [land for land in map(_read_land, rows) if land is not None]
    names = Counter(name for land in lands for name in (land.name, *(place.name for place in land.places)))
    found = []
    for land in lands:
        places = [place for place in land.places if names[place.name] == 1]
        if names[land.name] == 1 and places:
            found.append(Land(land.name, land.subregion, land.currency, land.num_neighbours, land.population, places))
    return found


def _read_land(row: dict[str, Any]) -> Land | None:
    name, subregion, currencies = row["name"], row.get("subregion"), row.get("currencies") or []
    if not subregion or len(currencies) != 1 or not row.get("population") or not name.replace(" ", "").isalpha():
        return None
    places = [Place(province, "province") for province in row.get("provinces") or [] if _is_plain(province, name)]
    capital = row.get("capital")
    if isinstance(capital, str) and _is_plain(capital, name):
        places = [place for place in places if place.name != capital] + [Place(capital, "capital")]
    return Land(name, subregion, currencies[0], len(row.get("borders") or []), int(row["population"]), places)


def _is_plain(name: str, country: str) -> bool:
    """Whether a place's name has only letters, spaces and hyphens, and shares no word with its country's."""
    is_name = name.replace(" ", "").replace("-", "").isalpha()
    return is_name and not set(name.lower().replace("-", " ").split()) & set(country.lower().split())


def describe(land: Land) -> list[dict[str, str]]:
    """Write the documents of a country and of its places.

    Returns:
        Rows of the corpus; the country's is the first.
    """
    country = (
        f"{land.name} lies in {land.subregion}. The people of {land.name} number {land.population} and pay in "
        f"{land.currency}. It borders on {land.num_neighbours} others."
    )
    places = [{"title": p.name, "text": f"{p.name} is a {p.kind} of {land.name}."} for p in land.places]
    return [{"title": land.name, "text": country}, *places]


def claim_about_one(land: Land, place: Place, fact: str, value: str) -> dict[str, Any]:
    """Claim something about the country of a place.

    Args:
        land: The country.
        place: One of its places; the claim names only the place.
        fact: A key of `FACTS`.
        value: What the claim says; it is true if it is the country's.
    """
    words, true_value = FACTS[fact]
    return {
        "claim": f"The country with the {place.kind} {place.name} {words.format(value)}.",
        "titles": [place.name, land.name],
        "notes": f"{place.name} is in {land.name}.",
        "query": land.name,
        "is_true": value == true_value(land),
    }


def claim_about_two(lands: tuple[Land, Land], places: tuple[Place, Place], fact: str) -> dict[str, Any]:
    """Claim that two places are in countries that have a fact in common.

    Args:
        lands: The countries.
        places: A place of each.
        fact: A key of `FACTS`.
    """
    words = {"subregion": "belong to the same subregion", "currency": "have the same currency"}
    said = words.get(fact, "have equally many neighbours")
    (one, other), value = places, FACTS[fact][1]
    return {
        "claim": f"The countries with the {one.kind} {one.name} and the {other.kind} {other.name} {said}.",
        "titles": [one.name, other.name, lands[0].name, lands[1].name],
        "notes": f"{one.name} is in {lands[0].name}. {other.name} is in {lands[1].name}.",
        "query": f"{lands[0].name} {lands[1].name}",
        "is_true": value(lands[0]) == value(lands[1]),
    }


def draw_claims(lands: list[Land], rng: random.Random) -> list[dict[str, Any]]:
    """Draw claims, in turn about one country and about two, with every place once as the first.

    Args:
        lands: At least two countries.
        rng: Source of all random choices.
    """
    pairs = [(land, place) for land in lands for place in land.places]
    rng.shuffle(pairs)
    claims = []
    for number, (land, place) in enumerate(pairs):
        fact = rng.choice(list(FACTS))
        if number % 2 == 0:
            value = FACTS[fact][1](rng.choice((land, rng.choice(lands))))
            claims.append(claim_about_one(land, place, fact, value))
        else:
            other = rng.choice([candidate for candidate in lands if candidate is not land])
            claims.append(claim_about_two((land, other), (place, rng.choice(other.places)), fact))
    return claims
