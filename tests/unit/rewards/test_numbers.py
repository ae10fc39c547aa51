r"""Different spellings of equal numbers, and similar texts that are not equal."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rl.rewards.answers import is_same_answer, normalize_answer
from rl.rewards.numbers import read_number

SAME = [
    # the issue's
    (r"18\text{ dollars}", "18"),
    ("1{,}250", "1250"),
    (r"50\%", "50"),
    ("3 hours", "3"),
    (r"\frac{1}{2}", "0.5"),
    # marks of thousands
    ("1,250.00", "1250"),
    (r"1\,250", "1250"),
    ("1 250", "1250"),
    ("1\u202f250", "1250"),
    (r"1,\!250", "1250"),
    (r"1\;250", "1250"),
    ("1~250", "1250"),
    ("5'000", "5000"),
    ("1_000", "1000"),
    ("１，２５０", "1250"),
    # currencies
    (r"\$18", "18"),
    ("$18$", "18"),
    ("18 dollars", "$18"),
    ("US$20", "20"),
    ("20 USD", "20 dollars"),
    ("€18", "18 euros"),
    ("18€", "18"),
    (r"-\$5", "-5"),
    ("-€5", "-5"),
    ("Rs. 500", "₹500"),
    # units
    (r"12\text{ cm}", "12 centimeters"),
    ("12 centimetres", "12 cm"),
    ("5 sq ft", "5 square feet"),
    ("60 miles per hour", "60 mph"),
    ("4°C", "4 degrees Celsius"),
    ("4 boxes", "4 box"),
    ("4 ladies", "4 lady"),
    ("3 buses", "3 bus"),
    ("3 eggs", "3 eggs left"),
    ("20 bucks", "$20"),
    ("12cm", "12"),
    ("3 hrs", "3 hours"),
    (r"18 \mathrm{km/h}", "18"),
    (r"3\text{ m}^2", "3 m²"),
    (r"90^{\circ}", "90 degrees"),
    ("90°", "90"),
    ("18 eggs per day.", "18"),
    ("5th", "5"),
    # percent
    ("50 percent", "50%"),
    (r"50\%", "0.5"),
    (r"25\,\%", r"\frac{1}{4}"),
    # one equation, or one box in another
    ("x = 2 + 3 = 5", "5"),
    ("total = 5 dollars + 3 dollars = 8 dollars", "8"),
    ("f(x, y) = 5", "5"),
    ("total cost = 5 dollars", "5"),
    (r"\boxed{5}", "5"),
    # fractions and mixed numbers
    (r"\dfrac12", "0.5"),
    (r"-\frac{1}{2}", "-.5"),
    (r"\frac{-1}{2}", "-0.5"),
    (r"1\frac{1}{2}", "1.5"),
    (r"2\tfrac{3}{4} cups", "2 3/4"),
    ("½", "0.5"),
    ("1½", "1.5"),
    # powers of ten, words of scale, signs, the last side of an equation
    ("1e3", "1000"),
    (r"1.5\times 10^3", "1500"),
    ("1.5 × 10³", "1500"),
    ("2.5*10^{-1}", "0.25"),
    ("5 million", "5000000"),
    ("2 dozen eggs", "24"),
    ("−3", "-3"),
    ("–3", "-3"),
    ("+7", "7"),
    ("x = 5", "5"),
    (r"3 \times 6 = 18", "18"),
    # points, emphasis, digits of other widths
    ("3.", "3"),
    ("18.0 dollars.", "18"),
    ("**42**", "42"),
    ("４２", "42"),
    ("\u200b42\u200b", "42"),
    # words
    (r"\text{Tuesday}", "tuesday"),
    ("No", "no"),
    ("TRUE", "True"),
    (r"\left(1, 2\right)", "(1, 2)"),
    ("cafe\u0301", "café"),
]

DIFFERENT = [
    ("", ""),
    ("$", "$"),
    (r"\text{}", ""),
    ("3x", "3"),
    ("2xy", "2"),
    ("7 x", "7"),
    ("3i", "3"),
    (r"5\pi", "5"),
    ("3^2", "3"),
    ("3 minutes", "3 hours"),
    ("3 m", "3 mm"),
    ("3 cents", "3 centimeters"),
    ("3 ml", "3 miles"),
    ("3 cows", "3 crows"),
    ("3 cats", "3 carts"),
    ("3 g", "3 gallons"),
    ("x = 1, y = 2", "x = 3, y = 2"),
    ("x = 1, y = 2", "2"),
    ("x = 1 y = 2", "2"),
    ("x = 1 or x = 2", "2"),
    (r"x = 1 \text{ and } y = 2", "2"),
    ("n, m = 5", "5"),
    ("3 cm", "3 cm^2"),
    ("12 am", "12 pm"),
    ("3 and a half hours", "3"),
    ("2 thirds", "2"),
    ("3 or 4", "3"),
    (r"5\text{ apples and }3\text{ pears}", "5"),
    ("5 million", "5"),
    ("5%", "0.5"),
    ("10²", "102"),
    ("1½", "11/2"),
    ("log₂8", "log28"),
    ("x >= 5", "5"),
    ("1/0", "0"),
    ("1e999999999", "1"),
    (r"1\,250", "251"),
    ("1 250/2", "1250/2"),
    ("0.3333", "1/3"),
    ("-3", "3"),
    ("x = 7", "x = 8"),
    (r"\Delta", r"\delta"),
    ("N", "n"),
    ("2N", "2n"),
]


@pytest.mark.parametrize(("answer", "truth"), SAME)
def test_spellings_of_one_answer(answer: str, truth: str) -> None:
    assert is_same_answer(answer, truth)
    assert is_same_answer(truth, answer)


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_answers_that_differ(answer: str, truth: str) -> None:
    assert not is_same_answer(answer, truth)
    assert not is_same_answer(truth, answer)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"1{,}234.5\text{ miles}", Fraction(2469, 2), "mile"),
        ("2 1/3 feet", Fraction(7, 3), "foot"),
        ("4 billion", Fraction(4_000_000_000), ""),
        ("£7", Fraction(7), "pound"),
    ],
)
def test_read_number_is_exact(text: str, value: Fraction, unit: str) -> None:
    number = read_number(normalize_answer(text))
    assert number is not None
    assert (number.value, number.unit, number.is_percent) == (value, unit, False)


def test_hostile_text_is_read_in_linear_time() -> None:
    """Quadratic time would take minutes here."""
    for part in ("{", "1,000", r"\frac{", "9 ", "1 1/", "$", r"\text{a", "1e9", "(1,"):
        assert not is_same_answer(part * 50_000, "3")
