"""What the facts about a server and its jobs mean, and what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

from graphile_worker_py.clock import shortened
from graphile_worker_py.looking.explaining import NO_SIDE_SCHEMA
from graphile_worker_py.records import Record
from graphile_worker_py.sql.backlog import Backlog, RegisteredPool
from graphile_worker_py.sql.checkup import Holder, ServerFacts
from graphile_worker_py.sql.inspect import JobCounts
from graphile_worker_py.sql.known_crontabs import KnownCrontab
from graphile_worker_py.sql.pauses import Pause, PauseTarget
from graphile_worker_py.sql.table_sizes import TableSize
from graphile_worker_py.sql.trust import Stranger, untrusted

LONGEST_TRANSACTION: Final = 300.0
"""Seconds from which on an open transaction is a finding."""
LONGEST_WAIT: Final = 600.0
"""Seconds from which on a job that is due and waits is a finding."""
LARGEST_OFFSET: Final = 2.0
"""Seconds by which the clocks of this machine and of the server may differ."""
MOST_DEAD_ROWS: Final = 100_000
"""Dead rows of a table, if they are more than the live ones."""
MOST_QUEUES: Final = 10_000
"""Queues without jobs."""
LARGEST_SIDE_TABLE: Final = 2**30
"""Bytes of a table of the side schema."""
SHORTEST_TIMEOUT: Final = 60_000
"""Milliseconds of a statement_timeout."""
MOST_SHOWN: Final = 5
"""Most tasks that a finding names."""


class Severity(StrEnum):
    """How much a finding matters."""

    PROBLEM = "problem"
    """A person must act."""
    NOTICE = "notice"
    """Good to know; it may be intended."""


class Finding(Record):
    """Something that is wrong, or will be.

    Attributes:
        check: What was looked at: `rights`, `clock`, `vacuum`, …
        severity: Whether a person must act.
        fact: What was found.
        remedy: What to do.
    """

    check: str
    severity: Severity
    fact: str
    remedy: str


def problem(check: str, fact: str, remedy: str) -> Finding:
    """A finding that a person must act upon."""
    return Finding(check=check, severity=Severity.PROBLEM, fact=fact, remedy=remedy)


def notice(check: str, fact: str, remedy: str) -> Finding:
    """A finding that may be intended."""
    return Finding(check=check, severity=Severity.NOTICE, fact=fact, remedy=remedy)


def of_server(server: ServerFacts) -> Iterator[Finding]:
    """Settings of the server under which workers can't work, or not well."""
    yield from _of_writing(server)
    yield from _of_sessions(server.settings)
    most = int(server.settings["max_connections"])
    if server.connections > 0.9 * most:
        yield problem(
            "connections",
            f"{server.connections} of {most} connections are in use",
            "lower max_pool_size of the workers, use a pooler, or raise max_connections",
        )


def _of_writing(server: ServerFacts) -> Iterator[Finding]:
    settings = server.settings
    if server.in_recovery or settings["default_transaction_read_only"] == "on":
        what = "is a standby" if server.in_recovery else "makes transactions read-only"
        yield problem(
            "settings",
            f"the server {what}, so that no job can be fetched",
            "connect to the primary, for example with target_session_attrs=read-write in the "
            "connection string",
        )
    for name in ("autovacuum", "track_counts"):
        if settings[name] == "off":
            yield problem(
                "vacuum",
                f"{name} is off, so that rows of completed jobs are never removed",
                f"alter system set {name} = on; select pg_reload_conf()",
            )


def _of_sessions(settings: Mapping[str, str]) -> Iterator[Finding]:
    timeout = int(settings["statement_timeout"])
    if 0 < timeout < SHORTEST_TIMEOUT:
        yield notice(
            "settings",
            f"statement_timeout of this role is {shortened(timeout / 1000)}: it also ends "
            f"statements of the worker that read many jobs",
            "give the worker's role a longer one: alter role … set statement_timeout = '5min'",
        )
    if settings["default_transaction_isolation"] != "read committed":
        yield notice(
            "settings",
            f"transactions of this role are {settings['default_transaction_isolation']}: workers "
            f"that fetch at the same moment fail and try again",
            "alter role … set default_transaction_isolation = 'read committed'",
        )
    if settings["synchronous_commit"] == "off":
        yield notice(
            "settings",
            "synchronous_commit is off: a crash of the server may lose the last outcomes, so that "
            "these jobs run again",
            "leave it on for the worker's role, unless that is intended",
        )


def of_pooler(*, pooled: bool, listens_directly: bool) -> Iterator[Finding]:
    """A pooler in the way of notifications."""
    if pooled and not listens_directly:
        yield problem(
            "pooler",
            "the connection goes through a pooler, which may not pass on notifications: jobs then "
            "wait for the next poll",
            "give workers a direct connection to listen on: --listen-connection-string",
        )


def of_clock(offset: float, uncertainty: float) -> Iterator[Finding]:
    """Clocks that differ."""
    if abs(offset) - uncertainty > LARGEST_OFFSET:
        how = "ahead of" if offset > 0 else "behind"
        yield problem(
            "clock",
            f"the server's clock is {shortened(abs(offset))} {how} this machine's",
            "synchronise both by NTP; workers with use_node_time would run jobs at wrong times",
        )


def of_crontabs(known: Sequence[KnownCrontab]) -> Iterator[Finding]:
    """Cron items whose last run is in the future."""
    for item in known:
        if item.is_ahead:
            yield problem(
                "clock",
                f"cron item {item.identifier!r} last ran at {item.last_execution:%Y-%m-%d %H:%M}Z, "
                f"which is in the future: a worker had a wrong clock. It does not run before then",
                "correct that clock, and delete the item's row from _private_known_crontabs; the "
                "next start of a worker adds it",
            )


def of_tables(
    sizes: Sequence[TableSize], unvacuumed: Sequence[str], holders: Sequence[Holder]
) -> Iterator[Finding]:
    """Tables that grow, and what keeps vacuum from them."""
    for name in unvacuumed:
        yield problem(
            "vacuum",
            f"autovacuum leaves out table {name}",
            f"alter table {name} reset (autovacuum_enabled)",
        )
    for holder in holders:
        since = "" if holder.age is None else f" has been open for {shortened(holder.age)}"
        yield problem(
            "transactions",
            f"{holder.kind} {holder.name} ({holder.about}){since}: vacuum keeps all rows that it "
            f"may see, and fetching gets slower",
            _end_of(holder),
        )
    for table in sizes:
        if table.dead > max(MOST_DEAD_ROWS, table.rows):
            yield problem(
                "vacuum",
                f"table {table.schema}.{table.name} has {table.dead:,} dead rows beside "
                f"{max(table.rows, 0):,.0f} live ones",
                f'vacuum (analyze) "{table.schema}"."{table.name}"; if they stay, an open '
                f"transaction holds them",
            )
        if table.schema == "graphile_worker_py" and table.size > LARGEST_SIDE_TABLE:
            yield notice(
                "side schema",
                f"table {table.schema}.{table.name} takes {table.size / 2**30:.1f} GiB",
                "shorten history_retention, or keep less with history; the audit log of the web "
                "pages is kept until you delete from it",
            )


def _end_of(holder: Holder) -> str:
    match holder.kind:
        case "transaction":
            return f"end it: select pg_terminate_backend({holder.name})"
        case "prepared transaction":
            return f"finish it: rollback prepared '{holder.name}', or commit it"
    return f"drop it if it is not needed: select pg_drop_replication_slot('{holder.name}')"


def of_jobs(
    counts: JobCounts, backlog: Backlog, unserved: Mapping[str, str | None]
) -> Iterator[Finding]:
    """Jobs that do not run."""
    if counts.failed:
        failed = {name: each.failed for name, each in counts.tasks.items() if each.failed}
        most = sorted(failed, key=lambda name: -failed[name])[:MOST_SHOWN]
        yield problem(
            "failed jobs",
            f"{counts.failed} job(s) were given up: "
            + ", ".join(f"{failed[name]} of {name!r}" for name in most)
            + (", …" if len(failed) > len(most) else ""),
            "see why with `jobs --state failed`, then `retry` them, or delete them with "
            "`cleanup DELETE_PERMAFAILED_JOBS`",
        )
    for task, close in unserved.items():
        meant = "" if close is None else f"; did you mean {close!r}?"
        yield problem(
            "unknown tasks",
            f"jobs of task {task!r} are due, and no live Python pool has it{meant}",
            "start a worker that has the task, or remove the jobs",
        )
    if backlog.stale_jobs or backlog.stale_queues:
        yield problem(
            "locks",
            f"{backlog.stale_jobs} job(s) and {backlog.stale_queues} queue(s) have been locked for "
            f"more than four hours, and no worker has freed them",
            "see who holds them with `workers`; `unlock` frees those of a dead worker",
        )
    if backlog.oldest_due > LONGEST_WAIT:
        job = f" (job {backlog.oldest_due_job})" if backlog.oldest_due_job is not None else ""
        yield notice(
            "backlog",
            f"{backlog.due_jobs} job(s) are due, the first of them for "
            f"{shortened(backlog.oldest_due)}{job}",
            "see why with `explain`, and start more workers if they are busy",
        )


def of_strangers(schema: str, strangers: Sequence[Stranger]) -> list[Finding]:
    """A schema that another role has planted, which is why no worker pools register."""
    if not strangers:
        return []
    fact, _, remedy = untrusted(schema, strangers).partition(". ")
    return [problem("pools", f"worker pools do not register here: {fact}", remedy)]


def of_pools(pools: Sequence[RegisteredPool] | None, backlog: Backlog) -> Iterator[Finding]:
    """Worker pools that are late, or missing."""
    if pools is None:
        yield notice("pools", "worker pools do not register here", NO_SIDE_SCHEMA)
        return
    late = [pool for pool in pools if pool.overdue]
    for pool in late:
        yield problem(
            "pools",
            f"pool {pool.pool_id} (process {pool.pid} on {pool.host}) was last heard of "
            f"{shortened(pool.heartbeat_age)} ago",
            "look at its process and its log; other pools free its jobs",
        )
    living = [pool for pool in pools if not pool.overdue]
    if not living and backlog.due_jobs:
        yield problem(
            "pools",
            f"{backlog.due_jobs} job(s) are due, and no Python worker pool is alive",
            "start a worker, unless Node workers run these jobs",
        )
    versions = sorted({pool.version for pool in living if pool.version is not None})
    if len(versions) > 1:
        yield notice(
            "versions",
            f"worker pools run different releases: {', '.join(versions)}",
            "finish the deployment",
        )
    for pool in living:
        if pool.loop_lag is not None and pool.loop_lag > 1:
            yield problem(
                "pools",
                f"the event loop of pool {pool.pool_id} is {shortened(pool.loop_lag)} late: a task "
                f"blocks it",
                "find the task with --dev, and make it a plain function, which runs in a thread",
            )


def of_connections(pools: Sequence[RegisteredPool] | None, allowed: int) -> Iterator[Finding]:
    """More connections than the server allows, once all pools need theirs."""
    living = [pool for pool in pools or () if not pool.overdue]
    most = sum(pool.connections or 0 for pool in living)
    if most > allowed:
        yield problem(
            "connections",
            f"{len(living)} worker pool(s) may open {most} connections, and the server allows "
            f"{allowed}",
            "lower max_pool_size of the workers, use a pooler, or raise max_connections",
        )


def of_pauses(pauses: Sequence[Pause]) -> Iterator[Finding]:
    """What is paused, which may have been forgotten."""
    for pause in pauses:
        name = "" if pause.target is PauseTarget.EVERYTHING else f" {pause.name}"
        since = f"{pause.at:%Y-%m-%d %H:%M}Z"
        yield notice(
            "paused",
            f"{pause.what} has been paused since {since} {pause.why}",
            "it was resumed, and is freed when its running job has ended"
            if pause.ending
            else f"`resume --{pause.target}{name}` when it may go on",
        )


def of_queues(total: int, empty: int) -> Iterator[Finding]:
    """Queues whose names are never used again."""
    if empty > MOST_QUEUES:
        yield notice(
            "queues",
            f"{empty:,} of {total:,} queues have no jobs: their names may come from ids",
            "delete them with `cleanup GC_JOB_QUEUES`, and use few names",
        )
