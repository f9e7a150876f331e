"""The parts of a worker pool, made and connected, not running yet."""

from collections.abc import Callable

from graphile_worker_py.executors.executor import Executors
from graphile_worker_py.fleet.followers import Followers
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.leader import Leader
from graphile_worker_py.fleet.old_locks import OldLocks
from graphile_worker_py.fleet.recovery import RecoveryLoop
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.workers.fetcher import Fetcher
from graphile_worker_py.workers.hearing import Hearing
from graphile_worker_py.workers.holdings import Holdings
from graphile_worker_py.workers.local_queue import LocalQueue
from graphile_worker_py.workers.riders import Riders
from graphile_worker_py.workers.settler import Settler
from graphile_worker_py.workers.sweep import Sweep
from graphile_worker_py.workers.team import Team
from graphile_worker_py.workers.watchdog import Watchdog


class Parts(Record):
    """The parts of one pool; see `wiring` for how they are connected.

    Attributes:
        fetching: The connection for fetches.
        settling: The connection for outcomes; the same one if the pool may have only two.
        make_watchdog: Makes the watchdog of the running event loop.
        executors: How tasks are called.
        context: What the running jobs share.
    """

    holdings: Holdings
    fetching: OwnConnection
    settling: OwnConnection
    fetcher: Fetcher
    settler: Settler
    heartbeat: Heartbeat
    followers: Followers
    leader: Leader
    recovery: RecoveryLoop
    old_locks: OldLocks
    riders: Riders
    queue: LocalQueue
    team: Team
    hearing: Hearing
    sweep: Sweep
    executors: Executors
    context: PoolContext
    make_watchdog: Callable[[], Watchdog]

    def looking_after_others(self) -> list[tuple[RecoveryLoop | OldLocks | Leader, str]]:
        """The parts that do something for other pools too, and what each does."""
        parts: list[tuple[RecoveryLoop | OldLocks | Leader, str]] = [
            (self.recovery, "recover dead pools"),
            (self.old_locks, "look after old locks"),
        ]
        return [*parts, (self.leader, "do chores")] if self.leader.has_chores else parts

    @property
    def plugin_failures(self) -> int:
        """How often chores failed, or what plugins do after a heartbeat."""
        return self.followers.failures + self.leader.failures

    @property
    def plugin_error(self) -> str | None:
        """The last of these errors; None if there was none."""
        return self.followers.last_error or self.leader.last_error
