"""How a command reaches a database whose schema is installed."""

from graphile_worker_py.sync_worker_utils import SyncWorkerUtils


def opened_utils(connection: str | None, schema: str | None) -> SyncWorkerUtils:
    """Utils on one connection. They install nothing: a typing error must not create tables."""
    return SyncWorkerUtils(connection, schema=schema, max_pool_size=1, migrate=False)
