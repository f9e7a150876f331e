"""Read by one statement what several statements read, so that a page takes few round trips.

Each statement becomes a subquery whose rows are an array, so all of them see one snapshot, and
their rows are read as if each had been sent by itself.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, LiteralString, TypeVar

import psycopg

from graphile_worker_py.postgres.query import Query, Step, Steps

T = TypeVar("T")
_VALUE: Final = re.compile(r"\$(\d+)")


class Together(Query[list[Any]]):
    """One statement for several ones; its result is a list of theirs.

    Args:
        text: As of `Query`.
        values: As of `Query`.
        read: As of `Query`.
        queries: The statements; see `together`.
    """

    __slots__ = ("queries",)
    queries: Sequence[Query[Any]]

    def __init__(
        self,
        text: LiteralString,
        values: Sequence[Any],
        read: Callable[[list[tuple[Any, ...]]], list[Any]],
        *,
        queries: Sequence[Query[Any]],
    ) -> None:
        super().__init__(text, values, read, prepare=False)
        object.__setattr__(self, "queries", queries)


def together(queries: Iterable[Query[Any]]) -> Together:
    """Make one statement of some that only read; equal ones are read once."""
    asked = list(queries)
    places: dict[str, int] = {}
    parts: list[str] = []
    values: list[Any] = []
    for each in asked:
        if _key(each) not in places:
            places[_key(each)] = len(places)
            moved = _moved(each.text, len(values))
            parts.append(f"array(select part from ({moved}) as part)")  # noqa: S608  # constants
            values += each.values

    def read(rows: list[tuple[Any, ...]]) -> list[Any]:
        return [each.read(rows[0][places[_key(each)]]) for each in asked]

    text: Any = "select " + ",\n".join(parts)  # a LiteralString, as it has constants alone
    return Together(text, values, read, queries=asked)


def _key(query: Query[Any]) -> str:
    return repr((query.text, query.values))


def _moved(text: str, by: int) -> str:
    """A statement whose values begin at another number."""
    return _VALUE.sub(lambda found: f"${int(found[1]) + by}", text)


def one(query: Query[T]) -> Steps[T]:
    """The steps that send one statement."""
    return (yield query)  # type: ignore[no-any-return]


def side_by_side(*steps: Steps[Any]) -> Steps[list[Any]]:
    """Advance generators that only read, and send what they ask for at once as one statement.

    If that fails because a table or a right is missing, each statement is sent by itself, and the
    generator that asked for it gets the error.

    Returns:
        Their results, in their order.
    """
    returned: dict[int, Any] = {}
    asked: dict[int, Query[Any]] = {}

    def advance(number: int, go_on: Callable[..., Step], *sent: Any) -> None:
        try:
            step = go_on(*sent)
        except StopIteration as end:
            returned[number] = end.value
        else:
            if not isinstance(step, Query):
                raise TypeError(f"only statements can be sent together, not {step!r}")
            asked[number] = step

    try:
        for number, each in enumerate(steps):
            advance(number, each.__next__)
        while asked:
            waiting, answers = [*asked], (yield from _answered([*asked.values()]))
            asked.clear()
            for number, answer in zip(waiting, answers, strict=True):
                failed = isinstance(answer, psycopg.Error)
                advance(number, steps[number].throw if failed else steps[number].send, answer)
    finally:
        for each in steps:
            each.close()
    return [returned[number] for number in range(len(steps))]


def _answered(asked: Sequence[Query[Any]]) -> Steps[list[Any]]:
    """The results of statements, or the errors of those that fail."""
    if len(asked) > 1:
        # What generators within a generator ask for is sent with the rest.
        parts = [each.queries if isinstance(each, Together) else [each] for each in asked]
        try:
            results = iter((yield together(query for part in parts for query in part)))
        except psycopg.ProgrammingError:
            pass
        else:
            found = [[next(results) for _ in part] for part in parts]
            return [
                each if isinstance(query, Together) else each[0]
                for query, each in zip(asked, found, strict=True)
            ]
    answers: list[Any] = []
    for query in asked:
        try:
            answers.append((yield query))
        except psycopg.Error as error:
            answers.append(error)
    return answers
