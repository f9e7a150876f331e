"""Names of serial queues."""

from collections.abc import Sequence
from typing import Final

from graphile_worker_py.postgres.query import Query

_READ: Final = """
select queues.id, queues.queue_name
from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
where queues.id = any($1::pg_catalog.int4[])
"""


def read_queue_names(queue_ids: Sequence[int]) -> Query[dict[int, str]]:
    """Read the names of queues by their ids."""
    return Query(_READ, (list(queue_ids),), lambda rows: {row[0]: row[1] for row in rows})
