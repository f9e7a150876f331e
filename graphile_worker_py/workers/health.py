"""The health of a worker pool, for probes and people."""

from dataclasses import asdict
from datetime import datetime
from enum import StrEnum

from graphile_worker_py import events
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import one_line
from graphile_worker_py.events import Events
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.records import Record
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.workers.listener import NoEchoError
from graphile_worker_py.workers.local_queue import Fetch


class State(StrEnum):
    """The stages of a worker pool."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Health(Record):
    """The state of a worker pool at one moment.

    Attributes:
        pool_id: Id of the pool.
        name: Its name in its runner.
        quiet: Whether it was told to fetch no more jobs.
        state: Its stage.
        started_at: When it was made.
        connected: Whether the database answered the last statement.
        standing_still: Whether the watchdog found that the event loop or the fetching of jobs has
            stopped.
        held_back: Whether it fetches no jobs, because it could not prove that it is alive and
            other pools may have freed its jobs.
        listening: Whether notifications about new jobs are known to arrive; if not, it only polls.
        last_fetch_at: When the last fetch was answered; None if none was.
        last_heard_at: When a notification last arrived; None if none did.
        running_jobs: How many jobs run now.
        locked_jobs: How many jobs the pool has locked: running ones, those fetched ahead, and
            those whose outcome is not recorded yet.
        busy_threads: How many threads run plain functions.
        stuck_threads: How many of them run on after their job was cut off.
        stuck_tasks: How many async tasks run on after their time limit, although they were
            cancelled.
        rider_failures: How often outcomes were recorded without what plugins add to them.
        rider_error: The last error that caused this; None if there was none.
        leads: Whether the pool is the leader of its schema, which does chores for all pools.
        plugin_failures: How often chores failed, or what plugins do after a heartbeat.
        plugin_error: The last of these errors; None if there was none.
        troubles: What plugins can't do at the moment, and why, in words.
        last_error: The last error of the pool, not of its jobs; None if there was none.
        last_error_at: When it occurred.
    """

    pool_id: str
    name: str
    quiet: bool
    state: State
    started_at: datetime
    connected: bool
    standing_still: bool
    held_back: bool
    listening: bool
    last_fetch_at: datetime | None
    last_heard_at: datetime | None
    running_jobs: int
    locked_jobs: int
    busy_threads: int
    stuck_threads: int
    stuck_tasks: int
    rider_failures: int
    rider_error: str | None
    leads: bool
    plugin_failures: int
    plugin_error: str | None
    troubles: tuple[str, ...]
    last_error: str | None
    last_error_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether it works, or is stopping in order."""
        return self.state is not State.STOPPED and not self.standing_still

    @property
    def ready(self) -> bool:
        """Whether it takes jobs: it is running and reaches the database."""
        stands = self.standing_still or self.held_back
        return self.state is State.RUNNING and self.connected and not stands

    @property
    def trouble(self) -> str:
        """Why it is not ready, in two words at most; empty if it is."""
        if self.ready:
            return ""
        if self.state is not State.RUNNING:
            return str(self.state)
        if self.standing_still:
            return "standing still"
        return "held back" if self.connected and self.held_back else "not connected"

    def as_json(self) -> dict[str, object]:
        """All attributes, with times as text."""
        told = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }
        return {"live": self.live, "ready": self.ready, **told}


class Vitals:
    """Keeps what `Health` and the watchdog need to know about a pool.

    Args:
        pool_id: Id of the pool.
        observed: Where the pool emits its events.
    """

    def __init__(self, pool_id: str, observed: Events) -> None:
        self.started_at = utc_now()
        self.connected = False
        self.last_fetch_at: datetime | None = None
        self.last_error: str | None = None
        self.last_error_at: datetime | None = None
        self.is_fetching = False
        self.fetch_steps = 0
        """How many fetches have begun, plus how many have ended."""
        self._pool_id = pool_id
        self._ends = [
            observed.subscribe(events.PoolListenSuccess, self._on_listen),
            observed.subscribe(events.PoolListenError, self._on_listen_error),
            observed.subscribe(events.PoolFatalError, self._on_fatal_error),
        ]

    def close(self) -> None:
        """Unsubscribe from events."""
        for end in self._ends:
            end()

    def watched(self, fetch: Fetch) -> Fetch:
        """Wrap a fetch so that its calls are counted and its errors kept."""

        async def watched_fetch(count: int) -> Fetched:
            self.is_fetching = True
            self.fetch_steps += 1
            try:
                return await fetch(count)
            except Exception as error:
                self.connected = False
                self._keep(error)
                raise
            finally:
                self.is_fetching = False
                self.fetch_steps += 1

        return watched_fetch

    def has_fetched(self) -> None:
        """Note that the database has answered a fetch."""
        self.connected = True
        self.last_fetch_at = utc_now()

    def _on_listen(self, event: events.PoolListenSuccess) -> None:
        if event.pool_id == self._pool_id:
            self.connected = True

    def _on_listen_error(self, event: events.PoolListenError) -> None:
        if event.pool_id == self._pool_id:
            self._keep(event.error)
            if not isinstance(event.error, NoEchoError):
                self.connected = False

    def _on_fatal_error(self, event: events.PoolFatalError) -> None:
        if event.pool_id == self._pool_id:
            self._keep(event.error)

    def _keep(self, error: BaseException) -> None:
        self.last_error = masked_text(one_line(error))
        self.last_error_at = utc_now()
