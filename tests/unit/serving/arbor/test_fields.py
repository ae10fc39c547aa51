"""What adapters of DSPy write, in all their forms, has the same values."""

from __future__ import annotations

import time

import pytest

from rl.serving.arbor.fields import canonical, forms_of

FORMS = [
    '[[ ## titles ## ]]\n["a", "b & c"]\n\n[[ ## sure ## ]]\nTrue\n\n[[ ## completed ## ]]',
    "[[ ## titles ## ]] ['a', 'b & c']\n[[ ## sure ## ]]\ntrue\n",
    "Well.\n<titles><item>a</item><item>b &amp; c</item></titles>\n<sure>\nTrue\n</sure>",
    '```json\n{"titles": ["a", "b & c"], "sure": true}\n```',
]


@pytest.mark.parametrize("text", FORMS)
def test_each_form_is_read(text: str) -> None:
    assert {"titles": '["a", "b & c"]', "sure": "true"} in forms_of(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "3.0"),
        (3, "3"),
        ("yes", '"yes"'),
        ("a  b\n", "a b"),
        ("None", "None"),
        ("[1,2]", [1, 2]),
        ("{'a': 1}", '{"a":1}'),
    ],
)
def test_values_that_mean_the_same_are_the_same(one: object, other: object) -> None:
    assert canonical(one) == canonical(other)


def test_the_first_of_several_fields_of_a_name_counts() -> None:
    assert forms_of("[[ ## a ## ]]\n1\n[[ ## a ## ]]\n2")[0] == {"a": "1"}
    assert forms_of("<a>1</a><a>2</a>")[0] == {"a": "1"}
    assert forms_of("<a>x <b>1</b></a>")[0] == {"a": "x <b>1</b>"}


@pytest.mark.parametrize(
    "text", ["", "plain text", "<a>no end", "[[ ## completed ## ]]", "{oops}", "[1, 2]", "x" * 300_000]
)
def test_text_without_fields_has_none(text: str) -> None:
    assert forms_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "<a>" * 60_000,
        "".join(f"<a{i}>" for i in range(20_000)),
        "</a>" * 40_000 + "<a>" * 20_000,
        "[[ ## a ## ]]" * 10_000,
        "{" * 100_000 + "}",
        "<a>" + "[" * 100_000 + "</a>",
        "<a>" + "(" * 4000 + "</a>",
        "<item>" * 30_000,
    ],
)
def test_hostile_text_takes_no_time(text: str) -> None:
    start = time.process_time()
    forms_of(text)
    assert time.process_time() - start < 2.0
