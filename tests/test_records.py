"""Records are frozen dataclasses, whatever they share."""

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from inspect import signature
from typing import Any, ClassVar, Generic, TypeVar

import pytest

from graphile_worker_py import Pool
from graphile_worker_py.events import WorkerRelease, WorkerStop
from graphile_worker_py.options.limits import RateLimit
from graphile_worker_py.records import Record

T = TypeVar("T")


class Shelf(Record):
    """A record of named fields."""

    kind: ClassVar = "shelf"
    width: int
    books: list[str] = field(default_factory=list)
    secret: str = field(default="none", repr=False)


class Corner(Shelf):
    """One that inherits fields, and checks them."""

    angle: float = 90.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")
        object.__setattr__(self, "angle", self.angle % 360)


class Pair(Record, Generic[T], kw_only=False):
    """One whose fields are given by position."""

    first: T
    second: T | None = None


def test_a_record_has_what_it_was_given_and_its_defaults() -> None:
    shelf = Shelf(width=3)
    assert asdict(shelf) == {"width": 3, "books": [], "secret": "none"}
    assert Shelf(width=3).books is not shelf.books
    assert Pair(1) == Pair(first=1) == Pair(1, second=None) != Pair(1, 2)
    assert asdict(Corner(angle=450.0, width=1))["angle"] == 90.0
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Corner(width=0)


def test_a_record_cannot_be_changed() -> None:
    event = WorkerStop(pool_id="pool-1", worker_id="worker-1")
    with pytest.raises(FrozenInstanceError):
        event.pool_id = "other"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del event.pool_id


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (WorkerStop(pool_id="pool-1", worker_id="worker-1"), {"worker_id": "worker-2"}),
        (RateLimit(5, burst=2), {"rate": 6}),
        (Pool(tasks=("mail/*",), concurrent_jobs=2), {"concurrent_jobs": 3}),
        (Pair("a", "b"), {"second": None}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_record_is_a_dataclass(record: Any, changes: dict[str, Any]) -> None:
    other = replace(record, **changes)
    same = replace(other, **{name: getattr(record, name) for name in changes})
    assert record == same != other
    assert {record, same, other} == {record, other}
    assert pickle.loads(pickle.dumps(record)) == copy(record) == deepcopy(record) == record
    assert list(asdict(record)) == [each.name for each in fields(record)]


def test_records_of_two_classes_are_never_equal() -> None:
    ids: dict[str, Any] = {"pool_id": "pool-1", "worker_id": "worker-1"}
    assert WorkerStop(**ids) != WorkerRelease(**ids)
    assert Shelf(width=1) != Corner(width=1)


def test_the_text_of_a_record_keeps_secrets() -> None:
    assert repr(Shelf(width=2, secret="12345")) == "Shelf(width=2, books=[])"
    assert repr(Pair("a")) == "Pair(first='a', second=None)"


def test_a_record_matches_a_pattern_by_position() -> None:
    match Pair("a", "b"):
        case Pair(first, second):
            assert (first, second) == ("a", "b")
    assert Shelf.__match_args__ == ()


def test_help_shows_what_a_record_takes() -> None:
    assert list(signature(Corner).parameters) == ["width", "books", "secret", "angle"]
    assert str(signature(Pair)) == "(first: ~T, second: Optional[~T] = None)"
    assert str(signature(Shelf).parameters["width"]) == "width: int"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda shelf, _: shelf(), "Shelf: missing a required .*argument: 'width'"),
        (lambda shelf, _: shelf(width=1, depth=2), "Shelf: .*unexpected keyword argument 'depth'"),
        (lambda shelf, _: shelf(1), "Shelf: too many positional arguments"),
        (lambda _, pair: pair(second=2), "Pair: missing a required argument: 'first'"),
        (lambda _, pair: pair(1, 2, 3), "Pair: too many positional arguments"),
        (lambda _, pair: pair(1, first=2), "Pair: multiple values for argument 'first'"),
    ],
)
def test_a_record_of_too_little_or_too_much_is_refused(
    make: Callable[[Any, Any], object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        make(Shelf, Pair)
