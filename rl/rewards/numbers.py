r"""Parse a short answer as one exact number with a unit: `18 dollars`, `50%`, `\frac{1}{2}`, `1 1/2 cups`, `1.5e3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_LONGEST = 1000
_LARGEST_EXPONENT = 400
"""Limits on characters and on powers of ten, because longer numbers would take long to parse."""

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FRAC = r"\\frac\s*" + r"\s*".join(
    rf"(?:\{{\s*(?P<{part}>[-+]?\s*{_DECIMAL})\s*\}}|(?P<{part}_digit>\d))" for part in ("top", "bottom")
)
_POWER = (
    r"(?:[eE](?P<exponent>[-+]?\d+)"
    r"|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*(?P<power>[-+]?\d+)\s*\}|(?P<power_digit>\d)))"
)
_CURRENCY = r"[€£¥₹₩₽¢]|(?:usd|eur|gbp|us|rs\.?)(?![a-z])"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<currency>{_CURRENCY})?\s*(?P<late_sign>[-+]?)\s*"
    rf"(?:(?:(?P<whole>\d+)\s*)?{_FRAC}"
    rf"|(?:(?P<whole_before>\d+)\s+)?(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<decimal>{_DECIMAL}){_POWER}?)",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"(?<![<>!=\\])=(?!=)")
_PARENTHESES = re.compile(r"\([^()]*\)")
_SEVERAL = re.compile(r"[,;]|\\\\|\b(?:and|or)\b|=\s*[-+]?[\d.]+\s+[^\W\d_](?:_\w+)?\s*(?:=|$)")
"""Signs of several equations before the last side: `x = 1, y = 2`, `x = 1 or x = 2`, `x = 1 y = 2`."""
_SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_WORD = r"[^\W\d_]+\.?(?:\^(?:\{-?\d\}|\d))?"
_UNIT = re.compile(rf"\s*{_WORD}(?:[\s/'-]+{_WORD})*\s*")
_MOST_WORDS = 6
_SINGLE_LETTERS = frozenset("msghlLNJWVAKCF")
"""Units of one letter; any other letter after a number is a variable."""
_SHORT = frozenset({
    "mm", "cm", "km", "in", "ft", "yd", "mi", "mg", "kg", "oz", "lb", "lbs", "ml", "mL", "kW", "kWh", "mph", "kmh",
    "ms", "sec", "min", "hr", "hrs", "am", "pm", "st", "nd", "rd", "th",
})  # fmt: skip
"""Units that may follow a number without a space. Other short words there are products of variables."""
_NO_UNIT = frozenset({"and", "or", "to", "half", "halves", "thirds", "plus", "minus", "over", "mod", "sqrt", "pi"})
_SAME_UNIT = {
    "€": "euro", "eur": "euro", "£": "pound", "gbp": "pound", "¥": "yen", "₹": "rupee", "rs": "rupee", "¢": "cent",
    "usd": "dollar", "us": "dollar", "buck": "dollar",
    "feet": "foot", "inches": "inch", "children": "child", "people": "person", "men": "man", "women": "woman",
    "mm": "millimeter", "cm": "centimeter", "m": "meter", "km": "kilometer", "in": "inch", "ft": "foot", "yd": "yard",
    "mi": "mile", "mg": "milligram", "g": "gram", "kg": "kilogram", "oz": "ounce", "lb": "pound", "l": "liter",
    "ml": "milliliter", "gal": "gallon", "sq": "square", "ms": "millisecond", "s": "second", "sec": "second",
    "min": "minute", "h": "hour", "hr": "hour", "d": "day", "wk": "week", "yr": "year", "w": "watt", "kw": "kilowatt",
    "kwh": "kilowatt-hour", "v": "volt", "a": "ampere", "amp": "ampere", "n": "newton", "j": "joule", "k": "kelvin",
    "c": "celsius", "f": "fahrenheit", "mph": "mile/hour", "kmh": "kilometer/hour", "kph": "kilometer/hour",
    "mb": "megabyte", "gb": "gigabyte", "kb": "kilobyte", "hz": "hertz", "deg": "degree", "pt": "point", "pc": "piece",
}  # fmt: skip
"""Canonical name of each unit, by other singular names. This needs a table: common letters do not make one word an
abbreviation of another (`cents` and `centimeters`, `ml` and `miles`)."""
_PLURAL = (("(?<=[^aeiou])ies$", "y"), ("(?<=[sxz])es$|(?<=ch)es$|(?<=sh)es$", ""), ("(?<![su])s$", ""))
"""Plural endings and their replacement in the singular; the first match applies."""


@dataclass(slots=True, frozen=True)
class UnitNumber:
    """A number with a unit."""

    value: Fraction
    unit: str
    """Singular and lower case; empty without a unit and for percent."""
    is_percent: bool


def read_number(text: str) -> UnitNumber | None:
    r"""Parse a whole text as one number.

    Args:
        text: From `rl.rewards.answers.normalize_answer`. An equation counts as its last side: `x = 5` is 5.

    Returns:
        The number, or None if the text is not exactly one number.
    """
    if len(text) > _LONGEST:
        return None
    *sides, text = _EQUALS.split(text)
    text = text.strip()
    found = _NUMBER.match(text)
    if found is None or _SEVERAL.search("=".join(_PARENTHESES.sub("", side) for side in sides)):
        return None
    value = _value(found)
    suffix = text[found.end() :]
    if value is None or (found["sign"] and found["late_sign"]):
        return None
    if suffix.strip() in ("%", "percent") or re.match(r"\s*(?:%|percent\b)\s*(?:[a-z]|$)", suffix):
        return UnitNumber(value, "", is_percent=True)
    scaled = _scaled(value, suffix)
    unit = _unit(scaled[1])
    if unit is None:
        return None
    return UnitNumber(scaled[0], unit or _singular(found["currency"] or ""), is_percent=False)


def is_same_number(first: UnitNumber, second: UnitNumber) -> bool:
    """Whether two numbers are equal.

    A missing unit matches any unit; otherwise units must be equal, abbreviated or not. If only one number has a percent
    sign, the other may be the same percentage without the sign (`50%` and `50`) or the fraction (`0.5`).
    """
    if first.is_percent != second.is_percent:
        percent, other = (first, second) if first.is_percent else (second, first)
        return other.value in (percent.value, percent.value / 100)
    return first.value == second.value and _is_same_unit(first.unit, second.unit)


def _value(found: re.Match[str]) -> Fraction | None:
    """Value of the number; None for a division by zero or an exponent beyond the limit."""
    whole = Fraction(found["whole"] or found["whole_before"] or 0)
    if found["decimal"]:
        exponent = int(found["exponent"] or found["power"] or found["power_digit"] or 0)
        if abs(exponent) > _LARGEST_EXPONENT:
            return None
        value = Fraction(_fraction_text(found["decimal"])) * Fraction(10) ** exponent
    else:
        top = found["top"] or found["top_digit"] or found["over"]
        bottom = found["bottom"] or found["bottom_digit"] or found["under"]
        divisor = Fraction(_fraction_text(bottom))
        if divisor == 0:
            return None
        value = whole + Fraction(_fraction_text(top)) / divisor
    return -value if "-" in found["sign"] + found["late_sign"] else value


def _fraction_text(decimal: str) -> str:
    """Rewrite a decimal for `Fraction`: `3.` becomes `3`, `- 1` becomes `-1`."""
    return "".join(decimal.split()).removesuffix(".")


def _scaled(value: Fraction, suffix: str) -> tuple[Fraction, str]:
    """Multiply the number by scale words such as `million` after it; return the product and the remaining text."""
    while (word := re.match(r"\s+([a-zA-Z]+)\b", suffix)) and word[1].lower() in _SCALE:
        value, suffix = value * _SCALE[word[1].lower()], suffix[word.end() :]
    return value, suffix


def _unit(suffix: str) -> str | None:
    """Parse the text after a number as a unit; None if it is mathematics or a sentence."""
    suffix = re.sub(r"^\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)", " degrees ", suffix)
    stripped = suffix.strip()
    if not stripped or re.fullmatch(_CURRENCY, stripped, re.IGNORECASE):
        return _singular(stripped)
    words = re.split(r"[\s/'-]+", stripped)
    if _UNIT.fullmatch(suffix) is None or len(words) > _MOST_WORDS or not _NO_UNIT.isdisjoint(words):
        return None
    first = re.split(r"[.^]", words[0])[0]
    is_apart = suffix[0].isspace()
    if len(first) == 1 and not (is_apart and first in _SINGLE_LETTERS):
        return None
    if not is_apart and len(first) < 4 and first not in _SHORT:
        return None
    return _singular(stripped)


def _singular(unit: str) -> str:
    unit = re.sub(r"\s*/\s*|\s+per\s+", "/", unit.lower().replace("{", "").replace("}", ""))
    return re.sub(r"[^\s/^-]+(?=[\s/^-]|$)", lambda word: _unit_word(word[0]), " ".join(unit.split()))


def _unit_word(word: str) -> str:
    """Canonical singular name of one word of a unit."""
    word = word.removesuffix(".")
    if word not in _SAME_UNIT and len(word) > 2:
        word = next((re.sub(end, by, word) for end, by in _PLURAL if re.search(end, word)), word)
    word = re.sub("(?<=met|lit)re$", "er", word)
    return _SAME_UNIT.get(word, word)


def _is_same_unit(first: str, second: str) -> bool:
    """Whether two units are equal; one may have further words at its end (`eggs left`)."""
    short, long = sorted((first, second), key=len)
    return not short or long == short or long.startswith(f"{short} ")
