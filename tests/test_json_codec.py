"""JSON text of payloads: what is written, what is read, and what is kept on the way."""

import dataclasses
import json
import uuid
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphile_worker_py import json_codec

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_every_json_value_comes_back_as_it_went(value: Any) -> None:
    text = json_codec.dumps(value)
    assert json_codec.loads(text) == value
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "number", [2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**100]
)
def test_whole_numbers_keep_all_their_digits(number: int) -> None:
    assert json_codec.dumps(number) == str(number).encode()
    assert json_codec.loads(str(number)) == number
    assert json_codec.loads(f'{{"deep": [[{number}]]}}') == {"deep": [[number]]}


@pytest.mark.parametrize(
    "text", ["a\0b", "\ud800", "\udfff\ud800", "\N{SNOWMAN}", "\U0001f600", ""]
)
def test_any_text_comes_back_as_it_went(text: str) -> None:
    written = json_codec.dumps({text: [text]})
    assert json_codec.loads(written) == {text: [text]}
    # It is what PostgreSQL's json takes: UTF-8, U+0000 and surrogates written out.
    written.decode()
    assert b"\0" not in written


def test_it_is_compact() -> None:
    assert json_codec.dumps({"a": [1, "\N{SNOWMAN}"]}) == '{"a":[1,"\N{SNOWMAN}"]}'.encode()
    assert json_codec.dumps({"a": [2**70, 1]}) == b'{"a":[' + str(2**70).encode() + b",1]}"


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int


EXTRA: list[tuple[Any, Any]] = [
    (datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), "2020-01-02T03:04:05+00:00"),
    (date(2020, 1, 2), "2020-01-02"),
    (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (Colour.RED, "red"),
    (Point(1, 2), {"x": 1, "y": 2}),
    ((1, 2), [1, 2]),
    (float("nan"), None),
    (float("inf"), None),
]


@pytest.mark.parametrize(("value", "written"), EXTRA, ids=lambda value: type(value).__name__)
def test_what_python_programs_have_is_written_too(value: Any, written: Any) -> None:
    assert json.loads(json_codec.dumps(value)) == written
    # Beside something that only the standard library writes.
    for beside in (2**70, "\ud800"):
        assert json.loads(json_codec.dumps([beside, value])) == [beside, written]
        nested_deeper = json_codec.dumps({"a": ({"b": value},), "c": beside})
        assert json.loads(nested_deeper) == {"a": [{"b": written}], "c": beside}


@dataclasses.dataclass
class Measure:
    value: float
    big: int


def test_what_is_not_finite_within_an_object_is_null_beside_a_long_number() -> None:
    measure = Measure(float("nan"), 2**70)
    assert json.loads(json_codec.dumps(measure)) == {"value": None, "big": 2**70}
    assert json.loads(json_codec.dumps([measure, float("-inf")])) == [
        {"value": None, "big": 2**70},
        None,
    ]


def test_a_number_that_is_too_large_for_a_float_is_read_and_written_as_null() -> None:
    for beside in (1, 2**70):
        value = json_codec.loads(f'{{"a": 1e999, "b": {beside}}}')
        assert json_codec.dumps(value) == f'{{"a":null,"b":{beside}}}'.encode()


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", {"a": print}, 1j], ids=lambda value: type(value).__name__
)
def test_what_is_no_json_is_refused_with_its_kind(value: Any) -> None:
    with pytest.raises(ValueError, match=r"not JSON-serialisable: \$\S* is an? \w+"):
        json_codec.dumps(value)


@pytest.mark.parametrize("value", [circular(), nested(100_000)], ids=["circular", "deep"])
def test_what_has_no_end_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON-serialisable"):
        json_codec.dumps(value)


@pytest.mark.parametrize("depth", [1, 250, 500])
def test_nesting_of_some_hundred_levels_is_written_and_read(depth: int) -> None:
    assert json_codec.loads(json_codec.dumps(nested(depth))) == nested(depth)


@pytest.mark.parametrize("text", ["", "{", "nul", "[1,]", "'a'", "\0", b"\xff"])
def test_what_is_no_json_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whichever reader tells it
        json_codec.loads(text)


def test_text_that_is_nested_too_deeply_is_refused() -> None:
    for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            json_codec.loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b' {"a" : 1.50e1, "a": 2} ', {"a": 2}),
        ("1e2", 100.0),
        ('"\\u0000\\ud800"', "\0\ud800"),
        ('"12345678901234567890"', "12345678901234567890"),
        ("0.12345678901234567890123", 0.12345678901234567890123),
        ("-0", 0),
    ],
)
def test_text_that_others_wrote_is_read(text: str | bytes, value: Any) -> None:
    assert json_codec.loads(text) == value
