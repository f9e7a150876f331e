"""How many connections a worker pool has, and what for."""

from graphile_worker_py.options import WorkerOptions


def own_connections(options: WorkerOptions) -> int:
    """How many connections a pool keeps to itself, which tasks do not use; one more listens.

    The first one fetches, the second one records, the third one sends heartbeats.
    """
    return min(2 if options.no_side_schema else 3, options.max_pool_size - 1)
