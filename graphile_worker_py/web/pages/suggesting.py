"""What may follow in the filter of jobs."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from graphile_worker_py.sql.inspect import JobState, ListedJob
from graphile_worker_py.sql.windows import Filter
from graphile_worker_py.web import filters
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.census import Counts
from graphile_worker_py.web.redact import Redaction

MOST_NAMES: Final = 100
MOST_PATHS: Final = 20
DEEPEST: Final = 3
LONGEST_VALUE: Final = 40
LARGEST_PAYLOAD: Final = 10_000
_NAME: Final = re.compile(r"[\w-]+", re.ASCII)


def suggestions(
    q: str,
    counts: Counts | None,
    jobs: Sequence[ListedJob],
    access: Access,
    redaction: Redaction,
) -> list[str]:
    """The filter with one more condition each.

    Args:
        q: The filter.
        counts: Tasks and queues that have jobs are suggested.
        jobs: Of the payloads of these, each path is suggested with its first value.
        access: The user; paths are suggested to those who may see payloads.
        redaction: Paths that it hides are not suggested.
    """
    tasks = [] if counts is None else sorted(counts.tasks())[:MOST_NAMES]
    queues = [] if counts is None else sorted(counts.queues or ())[:MOST_NAMES]
    terms = [
        *(Filter(state=state) for state in JobState),
        *(Filter(task=name) for name in tasks),
        *(Filter(queue=name) for name in queues),
        *(_paths(jobs, redaction) if access.payloads else ()),
    ]
    return [f"{q} {filters.written(term)}".strip() for term in terms]


def _paths(jobs: Sequence[ListedJob], redaction: Redaction) -> Iterator[Filter]:
    known: dict[tuple[str, ...], str] = {}
    for job in jobs:
        if len(job.payload_json) <= LARGEST_PAYLOAD:
            for path, value in _values(job.payload, ()):
                known.setdefault(path, value)
    shown = [path for path in known if not redaction.hides(path)]
    return (Filter(path=path, equals=known[path]) for path in shown[:MOST_PATHS])


def _values(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The values within a value that a filter can name, with the keys that lead to them."""
    match value:
        case dict() if len(path) < DEEPEST:
            for key, inner in value.items():
                if _NAME.fullmatch(key):
                    yield from _values(inner, (*path, key))
        case bool() if path:
            yield path, "true" if value else "false"
        case int() | str() if path and 0 < len(str(value)) <= LONGEST_VALUE:
            yield path, str(value)
