"""Refuse schemas that another role has planted.

A role that may create schemas can create one of ours before we do, with a trigger or a view that
runs its code as the role of a worker.
"""

from graphile_worker_py.errors import MigrationError
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql.trust import read_strangers, untrusted


def check_trust(schema: str, *, beside: str | None = None) -> Steps[None]:
    """Check that a schema, and all that is in it, belongs to roles that may be trusted.

    A schema that does not exist is fine. See `read_strangers`.

    Raises:
        MigrationError: It does not; the message says what belongs to which role.
    """
    strangers = yield read_strangers(schema, beside=beside)
    if strangers:
        raise MigrationError(untrusted(schema, strangers))
