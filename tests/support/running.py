"""What tests of running workers share: events remembered, and runners that wait less long."""

from typing import Any, TypeVar

from graphile_worker_py import Events, Runner
from graphile_worker_py.events import Event
from graphile_worker_py.workers.waits import Waits
from tests.support.eventually import eventually
from tests.support.jobs import Jobs

__all__ = ["Jobs", "Told", "impatient"]

E = TypeVar("E", bound=Event)


class Told:
    """Remembers every event; give `events` to what runs."""

    def __init__(self) -> None:
        self.events = Events()
        self.all: list[Event] = []
        self.events.subscribe(Event, self.all.append)

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind, or of the kinds below it."""
        return [event for event in self.all if isinstance(event, kind)]

    def names(self) -> list[str]:
        """The names of all events, in order."""
        return [event.name for event in self.all]

    async def seen(self, kind: type[E], *, count: int = 1, timeout: float = 10.0) -> E:
        """Wait for the `count`th event of a kind."""
        await eventually(lambda: len(self.of(kind)) >= count, timeout=timeout)
        return self.of(kind)[count - 1]


def impatient(**waits: Any) -> type[Runner]:
    """A Runner that waits less long than those of users; see `Waits` for what it waits for."""

    class ImpatientRunner(Runner):
        _waits = Waits(**waits)

    return ImpatientRunner
