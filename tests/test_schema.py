"""Schemas accept what is of their types, and name the key of anything else."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil import FileError
from disentangled_mil._schema import check_state

SCHEMA = {
    "name": str,
    "count": int,
    "share": float,
    "flag": bool,
    "classes": list[str],
    "weight": list[float] | None,
    "pair": tuple[str, list[str]],
    "sizes": dict[str, int],
    "any": dict,
}
WHOLE = {
    "name": "a",
    "count": 3,
    "share": 1,
    "flag": True,
    "classes": ["a", "b"],
    "weight": [0.5],
    "pair": ["a", ["b"]],
    "sizes": {"10x": 4},
    "any": {"x": [None]},
}


def test_values_of_the_schema_come_back_and_optional_ones_may_be_absent():
    assert check_state(WHOLE, SCHEMA) == WHOLE
    assert check_state({**WHOLE, "more": None}, SCHEMA, {"more": str | None, "less": int})["more"] is None


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"count": True}, "count", "count must be a whole number, got True"),
        ({"count": 3.0}, "count", "count must be a whole number, got 3.0"),
        ({"count": 2**63}, "count", "count must be a whole number, got 9223372036854775808"),
        ({"share": math.nan}, "share", "share must be a finite number, got nan"),
        ({"share": 10**400}, "share", "share must be a finite number, got 1000"),
        ({"flag": 1}, "flag", "flag must be true or false, got 1"),
        ({"classes": "ab"}, "classes", "classes must be a list, got 'ab'"),
        ({"classes": ["a", None]}, "classes[1]", r"classes\[1\] must be text, got None"),
        ({"weight": "1"}, "weight", "weight must be a list or null, got '1'"),
        ({"weight": [1, [2]]}, "weight[1]", r"weight\[1\] must be a finite number, got \[2\]"),
        ({"pair": ["a"]}, "pair", "pair must be a list of length 2"),
        ({"pair": ["a", ["b", 3]]}, "pair[1][1]", r"pair\[1\]\[1\] must be text, got 3"),
        ({"sizes": {"10x": None}}, "sizes.10x", "sizes.10x must be a whole number, got None"),
        ({"any": []}, "any", "any must be an object"),
        ({"more": 1}, "more", "has the unknown key 'more'; known are name, count"),
        ({"clases": 1}, "clases", r"has the unknown key 'clases' \(did you mean 'classes'\?\); known are name, count"),
    ],
)
def test_another_value_is_named(change, key, message):
    with pytest.raises(FileError, match=f"^{message}") as error:
        check_state({**WHOLE, **change}, SCHEMA)
    assert error.value.key == key
    with pytest.raises(FileError) as inner:
        check_state({**WHOLE, **change}, SCHEMA, key="part")
    assert inner.value.key == f"part.{key}"


def test_a_missing_key_and_another_kind_of_value_are_named():
    with pytest.raises(FileError, match=r"^part must have the key 'count', got 'name'$"):
        check_state({"name": "a"}, SCHEMA, key="part")
    with pytest.raises(FileError, match=r"^must be an object, got \[\]$"):
        check_state([], SCHEMA)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SCHEMA, "x"]), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from([*SCHEMA, "x"]), JSON))
def test_whatever_a_file_holds_is_accepted_or_refused(found):
    content = json.loads(json.dumps({**WHOLE, **found}))
    try:
        check_state(content, SCHEMA)
    except FileError as error:
        assert error.key.split(".")[0].split("[")[0] in found  # noqa: PT017
        return
    assert content.keys() == SCHEMA.keys()
    assert type(content["count"]) is int
    assert math.isfinite(content["share"])
    assert all(isinstance(name, str) for name in content["classes"])
