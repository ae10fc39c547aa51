import pytest

from rl.errors import ToolError
from rl.tools.schemas import ArgumentCheck, checked_schema


def schema(**parameters: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **parameters}}}


def test_schema_of_an_array_with_item_is_read_as_items():
    queries = {"type": "array", "item": {"type": "string"}, "description": "Queries."}
    corrected, warnings = checked_schema("t", schema(properties={"query_list": queries}))
    assert corrected == schema(
        properties={"query_list": {"type": "array", "items": {"type": "string"}, "description": "Queries."}}
    )
    assert warnings == [
        "t.function.parameters.properties.query_list: an array has `item`, which has no meaning. "
        "Read as `items`; correct it."
    ]
    assert ArgumentCheck(corrected).problem({"query_list": ["a"]}) is None
    assert "is not of type 'string'" in str(ArgumentCheck(corrected).problem({"query_list": [1]}))
    assert queries["item"] == {"type": "string"}  # the file's own is left alone


def test_schema_correction_reaches_nested_arrays_and_leaves_fields_called_item():
    rows = {"type": "array", "item": {"type": "array", "item": {"type": "integer"}}}
    given = schema(properties={"item": {"type": "string"}, "rows": {"anyOf": [rows, {"type": "null"}]}})
    corrected, warnings = checked_schema("t", given)
    properties = corrected["function"]["parameters"]["properties"]
    assert properties["item"] == {"type": "string"}
    assert properties["rows"]["anyOf"][0] == {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    assert len(warnings) == 2


def test_schema_that_is_right_is_kept():
    given = schema(properties={"a": {"type": "array", "items": {"type": "string"}}})
    assert checked_schema("t", given) == (given, [])
    without = {"function": {"name": "now", "description": "The time."}}
    assert checked_schema("t", without) == ({"type": "function", **without}, [])


@pytest.mark.parametrize("given", [None, [], {}, {"function": None}, {"function": {"name": 1}}, {"name": "f"}])
def test_schema_without_a_function_is_refused(given):
    with pytest.raises(ToolError, match=r"t: needs `function\.name`"):
        checked_schema("t", given)


def test_argument_check_lists_the_fields():
    check = ArgumentCheck(schema(properties={"a": {"type": ["string", "null"]}, "b": True}, required=["a"]))
    assert check.problem({}) == (
        "Error: invalid arguments for 'f': 'a' is a required property. Fields: a (string or null, required), b (any)."
    )
