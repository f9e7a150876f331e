"""The base of all events."""

from typing import ClassVar

from graphile_worker_py.records import Record


class Event(Record):
    """Base of every event; `name` is the name that Graphile Worker gives it."""

    name: ClassVar[str]
