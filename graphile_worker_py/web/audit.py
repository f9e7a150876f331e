"""Record every change, and read what was changed: when, who, what, how many."""

from typing import Any

from psycopg import AsyncConnection

from graphile_worker_py import json_codec
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql.web_tables import AuditRow, read_audit, write_audit
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.site import Site


async def record(
    site: Site,
    access: Access,
    action: str,
    *,
    count: int,
    job_id: int | None = None,
    wanted: str | None = None,
    details: dict[str, Any] | None = None,
    conn: AsyncConnection[Any] | None = None,
) -> None:
    """Write a row of the audit log, if there is one.

    Args:
        site: The database.
        access: The user.
        action: What was done.
        count: How many jobs or rows were changed.
        job_id: The job, for an action on one.
        wanted: The filter, for an action on many.
        details: What else was given; values that redaction hides are hidden.
        conn: The connection of the change, so that both are committed or neither.
    """
    if not site.has_tables:
        return
    told = None if details is None else site.redaction.payload(json_codec.dumps(details)).decode()
    query = write_audit(
        site.schema,
        by=access.user[:200],
        action=action,
        job_id=job_id,
        filter_json=None if wanted is None else json_codec.dumps(wanted).decode(),
        count=count,
        details_json=told,
        kept=site.settings.audit_kept,
    )
    await (await site.open()).run(query, conn=conn)


def rows(
    site: Site, *, job_id: int | None = None, before: int | None = None, limit: int
) -> Steps[list[AuditRow]]:
    """Read changes by people, the newest first; none where there is no audit log."""
    if not site.has_tables:
        return []
    return (yield read_audit(site.schema, job_id=job_id, before=before, limit=limit))  # type: ignore[no-any-return]
