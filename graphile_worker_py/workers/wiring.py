"""Make the parts of a worker pool and connect them."""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from graphile_worker_py.events import Events
from graphile_worker_py.executors.executor import Executors
from graphile_worker_py.fleet.followers import Followers
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.leader import Leader
from graphile_worker_py.fleet.old_locks import OldLocks
from graphile_worker_py.fleet.recovery import RecoveryLoop
from graphile_worker_py.fleet.refusals import Refusals
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.options import LocalQueueOptions, RecordingDurability, WorkerOptions
from graphile_worker_py.options.pools import DEFAULT_NAME
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.sql.notifications import JOBS_INSERT, WORKER_MIGRATE
from graphile_worker_py.sql.planning import keep_to_indexes
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.program import NOTHING_PROVIDED, Provided
from graphile_worker_py.tasks.queue_names import QueueNames
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.tasks.variables import JobVariables
from graphile_worker_py.workers.caller import Caller
from graphile_worker_py.workers.connections import own_connections
from graphile_worker_py.workers.fetcher import Fetcher
from graphile_worker_py.workers.hearing import Hearing, announced_jobs, is_breaking
from graphile_worker_py.workers.holdings import Holdings
from graphile_worker_py.workers.in_common import InCommon
from graphile_worker_py.workers.local_queue import LocalQueue
from graphile_worker_py.workers.parts import Parts
from graphile_worker_py.workers.pool import WorkerPool
from graphile_worker_py.workers.report import report_of
from graphile_worker_py.workers.riders import Riders
from graphile_worker_py.workers.settler import Settler
from graphile_worker_py.workers.sweep import Sweep
from graphile_worker_py.workers.team import Team
from graphile_worker_py.workers.waits import Waits
from graphile_worker_py.workers.watchdog import Watchdog
from graphile_worker_py.workers.worker import Worker


def build_pool(
    database: Database,
    tasks: Mapping[str, Task[Any]],
    options: WorkerOptions,
    *,
    logger: logging.Logger,
    events: Events,
    hooks: Hooks,
    in_common: InCommon,
    connections: int,
    once: bool = False,
    ends_process: bool = False,
    waits: Waits | None = None,
    provided: Provided = NOTHING_PROVIDED,
    name: str = DEFAULT_NAME,
) -> WorkerPool:
    """Make a worker pool that is not running yet.

    Args:
        database: Where the jobs are.
        tasks: Tasks by identifier.
        options: How to run them.
        logger: Where jobs log to.
        events: Where to emit events.
        hooks: Plugins that wrap fetches and task calls.
        in_common: What it has in common with the other pools of its runner.
        connections: How many connections it may open.
        once: Whether to end when no job is due, instead of waiting for more.
        ends_process: Whether a standstill of `watchdog_timeout` ends the process.
        waits: How long its parts wait; None means as long as `Waits` says.
        provided: What the program provides for tasks that ask for it.
        name: Its name in its runner.
    """
    if once:
        # No further outcomes would join the last ones, so they need not wait.
        options = replace(options, complete_job_batch_delay=-1.0, fail_job_batch_delay=-1.0)
    pool = WorkerPool(
        database,
        tasks,
        options,
        logger=logger,
        events=events,
        hooks=hooks,
        in_common=in_common,
        connections=connections,
        once=once,
        ends_process=ends_process,
        waits=waits,
        provided=provided,
        name=name,
    )
    pool.parts = _connected(pool)
    return pool


def _connected(pool: WorkerPool) -> Parts:
    holdings, context = Holdings(), _context(pool)
    riders = Riders(pool.hooks.riders(pool), pool_id=pool.pool_id, logger=pool.logger)
    fetching, settling = _connections(pool, riders)
    suspects, leader = _suspects(pool), _leader(pool)
    followers = _followers(pool, leader)
    heartbeat = _heartbeat(pool, suspects, followers)
    fetcher = _fetcher(pool, holdings, fetching)
    settler = _settler(pool, holdings, riders, settling)
    context.complete = settler.completion
    queue = _queue(pool, holdings, settler)
    executors = _executors(pool, context)
    variables = JobVariables()
    make_worker = _worker_maker(pool, context, queue, settler, suspects, executors, variables)
    team = _team(pool, make_worker, variables, context)
    return Parts(
        holdings=holdings,
        fetching=fetching,
        settling=settling,
        fetcher=fetcher,
        settler=settler,
        heartbeat=heartbeat,
        followers=followers,
        leader=leader,
        recovery=_recovery(pool, heartbeat, suspects),
        old_locks=_old_locks(pool, heartbeat, suspects, holdings),
        riders=riders,
        queue=queue,
        team=team,
        hearing=_hearing(pool, heartbeat),
        sweep=_sweep(pool, fetcher),
        executors=executors,
        context=context,
        make_watchdog=lambda: _watchdog(pool, team),
    )


def _connections(pool: WorkerPool, riders: Riders) -> tuple[OwnConnection, OwnConnection]:
    """The connection for fetches and that for outcomes, which may be the same."""
    # A rider's tables may be locked; an outcome must not wait for them.
    recording = partial(keep_to_indexes, lock_timeout="500ms" if riders else None)
    if own_connections(pool.options) < 2:
        # Fetches stay durable, and so does everything that shares their connection.
        settling = OwnConnection(pool.database, begin=recording)
        return settling, settling
    relaxed = pool.options.recording_durability == RecordingDurability.RELAXED
    settling = OwnConnection(pool.database, begin=partial(recording, relaxed=relaxed))
    return OwnConnection(pool.database, begin=keep_to_indexes), settling


def _suspects(pool: WorkerPool) -> Suspects:
    return Suspects(
        pool_id=pool.pool_id,
        database=pool.database,
        max_crashes=pool.options.max_crashes,
        marks_last=pool.prefetches,
        alone_for=pool.waits.suspect_alone,
        logger=pool.logger,
    )


def _executors(pool: WorkerPool, context: PoolContext) -> Executors:
    return Executors(
        context,
        most_processes=pool.options.concurrent_jobs,
        observed=pool.events,
        patience=pool.waits.overrun,
        process_use=pool.waits.process_use,
        exit_codes=pool.options.executable_exit_codes,
    )


def _worker_maker(
    pool: WorkerPool,
    context: PoolContext,
    queue: LocalQueue,
    settler: Settler,
    suspects: Suspects,
    executors: Executors,
    variables: JobVariables,
) -> Callable[[str], Worker]:
    def make_worker(worker_id: str) -> Worker:
        return Worker(
            worker_id,
            pool_id=pool.pool_id,
            source=queue,
            recorder=settler,
            guard=pool,
            caller=Caller(worker_id, pool=context, executors=executors, hooks=pool.hooks),
            suspects=suspects,
            variables=variables,
            events=pool.events,
        )

    return make_worker


def _fetcher(pool: WorkerPool, holdings: Holdings, connection: OwnConnection) -> Fetcher:
    return Fetcher(
        pool_id=pool.pool_id,
        database=pool.database,
        connection=connection,
        tasks=pool.tasks,
        forbidden_flags=pool.options.forbidden_flags,
        hooks=pool.hooks,
        holdings=holdings,
        # It must see all jobs before it ends.
        waits=replace(pool.waits, rest=0.0) if pool.once else pool.waits,
    )


def _settler(
    pool: WorkerPool, holdings: Holdings, riders: Riders, connection: OwnConnection
) -> Settler:
    return Settler(
        pool_id=pool.pool_id,
        schema=pool.database.schema,
        connection=connection,
        options=pool.options,
        holdings=holdings,
        riders=riders,
        settled=pool.hooks.settled(pool),
        events=pool.events,
        logger=pool.logger,
        broken=pool.break_down,
    )


def _queue(pool: WorkerPool, holdings: Holdings, settler: Settler) -> LocalQueue:
    return LocalQueue(
        pool_id=pool.pool_id,
        fetch=pool.vitals.watched(pool.fetch),
        return_jobs=settler.return_now,
        holdings=holdings,
        availability=pool.database.availability,
        options=pool.options.local_queue if pool.prefetches else LocalQueueOptions(),
        poll_interval=pool.options.poll_interval,
        drain=pool.once,
        events=pool.events,
    )


def _team(
    pool: WorkerPool,
    make_worker: Callable[[str], Worker],
    variables: JobVariables,
    context: PoolContext,
) -> Team:
    return Team(
        pool_id=pool.pool_id,
        make_worker=make_worker,
        variables=variables,
        options=pool.options,
        task_names=tuple(pool.tasks),
        stop=pool.stopping,
        kill=pool.killed,
        context=context,
        broken=pool.break_down,
        events=pool.events,
        patience=pool.waits.kill,
    )


def _sweep(pool: WorkerPool, fetcher: Fetcher) -> Sweep:
    return Sweep(
        pool_id=pool.pool_id,
        database=pool.database,
        fetcher=fetcher,
        options=pool.options,
        stop=pool.stopping,
        nudge=pool.nudge,
        events=pool.events,
        logger=pool.logger,
    )


def _watchdog(pool: WorkerPool, team: Team) -> Watchdog:
    is_dev = pool.options.dev or sys.flags.dev_mode
    return Watchdog(
        limit=pool.options.watchdog_timeout,
        exits=pool.ends_process,
        at_work=team.at_work,
        fetching=pool.pace,
        logger=pool.logger,
        about={"pool_id": pool.pool_id},
        waits=replace(pool.waits, look=0.1, first_warning=0.5) if is_dev else pool.waits,
    )


def _leader(pool: WorkerPool) -> Leader:
    return Leader(
        pool_id=pool.pool_id,
        database=pool.database,
        chores=[] if pool.once else pool.hooks.chores(pool),
        heartbeat_interval=pool.options.heartbeat_interval,
        logger=pool.logger,
    )


def _followers(pool: WorkerPool, leader: Leader) -> Followers:
    return Followers(
        database=pool.database,
        leader=leader,
        beating=pool.hooks.beating(pool),
        # Short enough that the next heartbeat is not too late.
        patience=pool.options.dead_after / 4,
        pool_id=pool.pool_id,
        logger=pool.logger,
    )


def _heartbeat(pool: WorkerPool, suspects: Suspects, followers: Followers) -> Heartbeat:
    may_keep = own_connections(pool.options) > 2
    return Heartbeat(
        pool_id=pool.pool_id,
        database=pool.database,
        options=pool.options,
        listens=not pool.once,
        suspects=suspects,
        connection=pool.in_common.beating.borrowed if may_keep else pool.database.new_connection,
        declared_dead=pool.lose,
        refusals=Refusals(longest=pool.options.watchdog_timeout, stuck=pool.stuck),
        follow=followers.follow,
        report=partial(report_of, pool),
        logger=pool.logger,
    )


def _recovery(pool: WorkerPool, heartbeat: Heartbeat, suspects: Suspects) -> RecoveryLoop:
    return RecoveryLoop(
        pool_id=pool.pool_id,
        database=pool.database,
        options=pool.options,
        heartbeat=heartbeat,
        suspects=suspects,
        hooks=pool.hooks,
        events=pool.events,
        lock_patience=pool.waits.recovery_lock,
        logger=pool.logger,
    )


def _old_locks(
    pool: WorkerPool, heartbeat: Heartbeat, suspects: Suspects, holdings: Holdings
) -> OldLocks:
    return OldLocks(
        pool_id=pool.pool_id,
        database=pool.database,
        heartbeat_interval=pool.options.heartbeat_interval,
        longest_interval=pool.waits.old_locks,
        known_ids=lambda: holdings.ids,
        heartbeat=heartbeat,
        suspects=suspects,
        logger=pool.logger,
    )


def _hearing(pool: WorkerPool, heartbeat: Heartbeat) -> Hearing:
    hearing = Hearing(
        pool_id=pool.pool_id,
        schema=pool.database.schema,
        poll_interval=pool.options.poll_interval,
        on_listen=heartbeat.hold_lock,
    )
    hearing.on_channel(JOBS_INSERT, lambda payload: pool.nudge(announced_jobs(payload)))
    hearing.on_burst(WORKER_MIGRATE, counts=is_breaking, work=pool.check_schema)
    return hearing


def _context(pool: WorkerPool) -> PoolContext:
    return PoolContext(
        pool_id=pool.pool_id,
        tasks=pool.tasks,
        database=pool.database,
        logger=pool.logger,
        queue_names=QueueNames(pool.database, delay=pool.options.get_queue_name_batch_delay),
        adding=pool.hooks.around_adding(pool.events, nan_as_null=pool.options.nan_as_null),
        # One connection stays free, for what these tasks and others do besides.
        most_completing=max(1, pool.options.max_pool_size - own_connections(pool.options) - 1),
        provided=pool.provided,
    )
