"""Examine a server and its jobs for what is wrong, or will be."""

import time
from collections.abc import Iterable

from graphile_worker_py import config
from graphile_worker_py.checks import check_flag
from graphile_worker_py.errors import MissingRightsError
from graphile_worker_py.looking import explaining
from graphile_worker_py.looking.paused import readable_pauses
from graphile_worker_py.observing import findings
from graphile_worker_py.observing.findings import Finding, Severity
from graphile_worker_py.postgres.connecting import AsyncPool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.schema import rights
from graphile_worker_py.sql import (
    backlog,
    checkup,
    inspect,
    known_crontabs,
    own_schema,
    table_sizes,
)
from graphile_worker_py.sql.granted import read_rights
from graphile_worker_py.sql.trust import read_strangers
from graphile_worker_py.worker_utils import WorkerUtils


async def doctor(
    source: str | AsyncPool | None = None,
    *,
    schema: str | None = None,
    listens_directly: bool = False,
) -> list[Finding]:
    """Examine a server and its jobs; return what needs attention, problems first.

    It changes nothing. With millions of jobs it takes some seconds.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller, or None
            for `DATABASE_URL` or libpq's variables.
        schema: Name of the schema; None means `GRAPHILE_WORKER_SCHEMA`, else `graphile_worker`.
        listens_directly: Whether workers have a `listen_connection_string`, so that a pooler is
            no problem.

    Raises:
        psycopg.OperationalError: The database can't be reached.
        MigrationError: The schema is missing or too old.
    """
    name = config.schema_name(schema)
    check_flag("listens_directly", listens_directly)
    try:
        async with (
            WorkerUtils(source, schema=name, migrate=False) as utils,
            utils.pool.connection() as conn,
        ):
            pid = conn.info.backend_pid
            steps = examine(name, backend_pid=pid, listens_directly=listens_directly)
            found = await Database(utils.pool, schema=name).drive(steps, conn=conn)
    except MissingRightsError as error:  # it may not even look
        found = [of_missing_rights(error)]
    return problems_first(found)


def problems_first(found: Iterable[Finding]) -> list[Finding]:
    """Findings in the order in which a person should read them."""
    return sorted(found, key=lambda each: each.severity is not Severity.PROBLEM)


def examine(
    schema: str,
    *,
    backend_pid: int,
    listens_directly: bool,
    longest_transaction: float = findings.LONGEST_TRANSACTION,
) -> Steps[list[Finding]]:
    """Look at everything that `doctor` knows of, and return what needs attention.

    With millions of jobs it takes some seconds.

    Args:
        schema: The schema.
        backend_pid: Process of the server as the connection knows it; a pooler makes one up.
        listens_directly: Whether workers have a direct connection to listen on.
        longest_transaction: Seconds from which on an open transaction is a finding.
    """
    before = time.time()
    server = yield checkup.read_server()
    after = time.time()
    found = [
        *findings.of_server(server),
        *findings.of_pooler(
            pooled=server.backend_pid != backend_pid, listens_directly=listens_directly
        ),
        *findings.of_clock(server.now - (before + after) / 2, (after - before) / 2),
    ]
    found += yield from _of_rights(schema)
    holders = yield checkup.read_holders(longest=longest_transaction)
    sizes = yield table_sizes.read_table_sizes(schema)
    unvacuumed = yield checkup.read_unvacuumed(schema)
    found += findings.of_tables(sizes, unvacuumed, holders)
    if any(each.check == "rights" for each in found):
        return found  # the tables may not be readable
    due = yield backlog.read_backlog()
    counts = yield inspect.count_jobs()
    unserved = yield from explaining.unserved_tasks(schema)
    pools = yield from backlog.registered_pools(schema)
    total, empty = yield checkup.count_queues()
    known = yield known_crontabs.list_known()
    strangers = yield read_strangers(own_schema.NAME, beside=schema)
    found += findings.of_strangers(own_schema.NAME, strangers) or findings.of_pools(pools, due)
    allowed = yield checkup.read_allowed_connections()
    found += findings.of_connections(pools, allowed)
    found += findings.of_pauses((yield from readable_pauses(schema)))
    found += findings.of_jobs(counts, due, unserved)
    found += findings.of_queues(total, empty)
    found += findings.of_crontabs(known)
    return found


def _of_rights(schema: str) -> Steps[list[Finding]]:
    granted = yield read_rights(schema, rights.SCHEDULING)
    try:
        rights.check_rights(granted, schema)
    except MissingRightsError as error:
        return [of_missing_rights(error)]
    return []


def of_missing_rights(error: MissingRightsError) -> Finding:
    """The finding that a role may not do what it needs to."""
    fact, _, remedy = str(error).partition(". ")
    return findings.problem("rights", fact, remedy or "grant what is missing")
