"""Names of serial queues, for running tasks."""

import asyncio

from graphile_worker_py.checks import check_whole
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.queue_ids import read_queue_names


class QueueNames:
    """Reads names together, and keeps them: the name of an id never changes.

    The first caller waits for more callers to join, and then reads the names for all of them. If
    it fails or is cancelled, the rest read again.

    Args:
        database: Where the queues are.
        delay: Seconds that the first caller waits.
    """

    def __init__(self, database: Database, *, delay: float) -> None:
        self._database = database
        self._delay = delay
        self._names: dict[int, str] = {}
        self._next: _Look | None = None

    async def get(self, queue_id: int) -> str:
        """The name of a queue.

        Raises:
            ConfigurationError: It is not an id.
            GraphileWorkerError: There is no queue with this id.
            psycopg.Error: The database could not be read.
        """
        check_whole("queue_id", queue_id, smallest=0)
        while queue_id not in self._names:
            look = self._next
            if look is None:
                look = self._next = _Look()
                look.ids.add(queue_id)
                await self._look_up(look)
            else:
                look.ids.add(queue_id)
                await look.ended.wait()
            if look.answered and queue_id not in self._names:
                raise GraphileWorkerError(f"there is no queue with the id {queue_id}")
        return self._names[queue_id]

    async def _look_up(self, look: "_Look") -> None:
        try:
            await asyncio.sleep(self._delay)
            self._next = None
            query = read_queue_names(list(look.ids))
            found = await self._database.run_retrying(query, what="look up queue names")
            self._names.update(found)
            look.answered = True
        finally:
            if self._next is look:
                self._next = None
            look.ended.set()


class _Look:
    """One statement that reads several names."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.ended = asyncio.Event()
        self.answered = False
