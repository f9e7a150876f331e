"""How a worker fares: what a probe or a person asks while it runs."""

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from graphile_worker_py import events
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import one_line
from graphile_worker_py.events import Events
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.workers.listener import NoEchoError
from graphile_worker_py.workers.local_queue import Fetch


class State(StrEnum):
    """How far a worker pool has come."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a worker pool says of itself.

    Attributes:
        pool_id: Id of the pool.
        state: How far it has come.
        started_at: When it was made.
        connected: Whether the database answered when it was last spoken to.
        standing_still: Whether the watchdog found that no jobs are fetched any more.
        held_back: Whether it fetches no jobs, because it could not prove to be alive and others
            may have freed those that it has.
        listening: Whether announcements of new jobs are known to arrive; else it only polls.
        last_fetch_at: When jobs were last fetched, or looked for.
        last_heard_at: When the listening connection was last heard of.
        running_jobs: Jobs that run now.
        locked_jobs: Jobs that the pool has locked: those that run, are fetched ahead, or have an
            outcome that is not recorded yet.
        busy_threads: Threads that run plain functions.
        stuck_threads: Those of them that nobody waits for any more, because the job was cut off.
        last_error: What last went wrong, apart from jobs that failed.
        last_error_at: When that was.
    """

    pool_id: str
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
    last_error: str | None
    last_error_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether it works, or is about to stop in order."""
        return self.state is not State.STOPPED and not self.standing_still

    @property
    def ready(self) -> bool:
        """Whether it takes jobs: it runs, and reaches the database."""
        stands = self.standing_still or self.held_back
        return self.state is State.RUNNING and self.connected and not stands

    @property
    def trouble(self) -> str:
        """Why it is not ready, in a word or two."""
        if self.state is not State.RUNNING:
            return str(self.state)
        if self.standing_still:
            return "standing still"
        return "held back" if self.connected and self.held_back else "not connected"

    def as_json(self) -> dict[str, object]:
        """All of it, with times as text."""
        told = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }
        return {"live": self.live, "ready": self.ready, **told}


class Vitals:
    """Takes down what happens to a pool, for `Health` and for the watchdog.

    Args:
        pool_id: Id of the pool.
        observed: Where the pool tells what happens.
    """

    def __init__(self, pool_id: str, observed: Events) -> None:
        self.started_at = utc_now()
        self.connected = False
        self.last_fetch_at: datetime | None = None
        self.last_error: str | None = None
        self.last_error_at: datetime | None = None
        self.is_fetching = False
        self.fetch_steps = 0
        """How often a fetch has begun or ended."""
        self._pool_id = pool_id
        self._ends = [
            observed.subscribe(events.PoolListenSuccess, self._on_listen),
            observed.subscribe(events.PoolListenError, self._on_listen_error),
            observed.subscribe(events.PoolFatalError, self._on_fatal_error),
        ]

    def close(self) -> None:
        """Take down nothing more."""
        for end in self._ends:
            end()

    def watched(self, fetch: Fetch) -> Fetch:
        """A way to fetch jobs, with its calls taken down."""

        async def watched_fetch(count: int) -> Fetched:
            self.is_fetching = True
            self.fetch_steps += 1
            try:
                return await fetch(count)
            except Exception as error:
                self.connected = False
                self._take_down(error)
                raise
            finally:
                self.is_fetching = False
                self.fetch_steps += 1

        return watched_fetch

    def has_fetched(self) -> None:
        """Take down that the database has answered a fetch."""
        self.connected = True
        self.last_fetch_at = utc_now()

    def _on_listen(self, event: events.PoolListenSuccess) -> None:
        if event.pool_id == self._pool_id:
            self.connected = True

    def _on_listen_error(self, event: events.PoolListenError) -> None:
        if event.pool_id == self._pool_id:
            self._take_down(event.error)
            if not isinstance(event.error, NoEchoError):
                self.connected = False

    def _on_fatal_error(self, event: events.PoolFatalError) -> None:
        if event.pool_id == self._pool_id:
            self._take_down(event.error)

    def _take_down(self, error: BaseException) -> None:
        self.last_error = masked_text(one_line(error))
        self.last_error_at = utc_now()
