"""Check at the start that a role has the rights it needs.

Otherwise a missing right shows only when it is needed: a worker without `delete` runs a job and
can't record its outcome. Rows that row-level security hides cause no error at all; the worker just
finds no jobs.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

from graphile_worker_py.errors import MissingRightsError, RowsHiddenError
from graphile_worker_py.postgres.query import Query, quoted
from graphile_worker_py.sql.granted import Rights, read_rights

Needs: TypeAlias = Mapping[str, Sequence[str]]
"""The needed privileges by table."""

LOOKING: Final[Needs] = {"migrations": ("select",)}
WORKING: Final[Needs] = {
    **LOOKING,
    "_private_tasks": ("select", "insert"),
    "_private_job_queues": ("select", "update"),
    "_private_jobs": ("select", "update", "delete"),
}
"""For running jobs; adding jobs needs more."""
SCHEDULING: Final[Needs] = {
    **WORKING,
    "_private_job_queues": ("select", "insert", "update"),
    "_private_jobs": ("select", "insert", "update", "delete"),
    "_private_known_crontabs": ("select", "insert", "update"),
}
"""For running jobs, and for adding those of a crontab."""


def check_rights(rights: Rights | None, schema: str) -> None:
    """Check that a role lacks no right, and that no rows are hidden from it.

    Args:
        rights: The rights of the role; None if the schema does not exist, which is no error here.
        schema: Name of the schema.

    Raises:
        MissingRightsError: The message says what is missing, and what to do.
        RowsHiddenError: All rows are hidden.
    """
    check_grants(rights, schema)
    if rights is not None and rights.hidden:
        raise RowsHiddenError(
            f"role {rights.role!r} sees no rows in schema {schema!r}: row-level security hides "
            f"those of {', '.join(rights.hidden)}. Connect as the owner {rights.owner!r}, or let a "
            f"superuser run: alter role {quoted(rights.role)} bypassrls"
        )


async def check_visible(
    run: Callable[[Query[Rights | None]], Awaitable[Rights | None]],
    schema: str,
    *,
    renew: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Check that no rows are hidden now, where a statement may have changed none because of that.

    Args:
        run: Sends the query.
        schema: Name of the schema.
        renew: Lets the statements that follow have a new session, if rows are hidden; None means
            that they get one anyway.

    Raises:
        RowsHiddenError: They are.
    """
    try:
        check_rights(await run(read_rights(schema, {})), schema)
    except RowsHiddenError:
        if renew is not None:
            await renew()
        raise


def check_grants(rights: Rights | None, schema: str) -> None:
    """Check that a role lacks no right, whether or not rows are hidden. See `check_rights`."""
    if rights is None or (rights.may_use and not rights.lacking):
        return
    raise MissingRightsError(
        f"role {rights.role!r} lacks rights in schema {schema!r}. Connect as its owner "
        f"{rights.owner!r}, or let the owner run: {'; '.join(_grants(rights, schema))}"
    )


def _grants(rights: Rights, schema: str) -> list[str]:
    """The statements that grant a role the rights that it lacks."""
    role, name = quoted(rights.role), quoted(schema)
    usage = [] if rights.may_use else [f"grant usage on schema {name} to {role}"]
    return usage + [
        f"grant {', '.join(privileges)} on {name}.{quoted(table)} to {role}"
        for table, privileges in rights.lacking.items()
    ]
