"""The parts of a worker pool, made and connected, not running yet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphile_worker_py.executors.guarding import Guard
from graphile_worker_py.executors.thread import ThreadExecutor
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.old_locks import OldLocks
from graphile_worker_py.fleet.recovery import RecoveryLoop
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.tasks.context import Abort
from graphile_worker_py.workers.fetcher import Fetcher
from graphile_worker_py.workers.holdings import Holdings
from graphile_worker_py.workers.listener import Listener
from graphile_worker_py.workers.local_queue import LocalQueue
from graphile_worker_py.workers.riders import Riders
from graphile_worker_py.workers.settler import Settler
from graphile_worker_py.workers.sweep import Sweep
from graphile_worker_py.workers.team import Team
from graphile_worker_py.workers.watchdog import Watchdog

if TYPE_CHECKING:  # read only by pools that have such tasks
    from graphile_worker_py.executors.process import ProcessExecutor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one pool; see `wiring` for how they are connected.

    Attributes:
        fetching: The connection for fetches.
        settling: The connection for outcomes; the same one if the pool may have only two.
        make_watchdog: Makes the watchdog of the running event loop.
        processes: Runs tasks in processes; None if no task wants that.
        process_guard: Ends what tasks have started, should the worker be killed.
    """

    holdings: Holdings
    fetching: OwnConnection
    settling: OwnConnection
    fetcher: Fetcher
    settler: Settler
    heartbeat: Heartbeat
    recovery: RecoveryLoop
    old_locks: OldLocks
    riders: Riders
    queue: LocalQueue
    team: Team
    listener: Listener
    sweep: Sweep
    abort: Abort
    threads: ThreadExecutor
    processes: "ProcessExecutor | None"
    process_guard: Guard
    make_watchdog: Callable[[], Watchdog]
