"""How many connections worker pools have, and what for."""

from collections.abc import Sequence

from graphile_worker_py.options import WorkerOptions


def own_connections(options: WorkerOptions) -> int:
    """How many connections a pool keeps to itself, which tasks do not use; one more listens.

    The first one fetches, the second one records, the third one sends heartbeats.
    """
    return min(2 if options.no_side_schema else 3, options.max_pool_size - 1)


def formula(pools: Sequence[WorkerOptions], *, shared: int) -> tuple[int, str]:
    """How many connections pools may open, and in words what for.

    Args:
        pools: The options of each.
        shared: How many connections their jobs share with the API.
    """
    own = sum(own_connections(each) for each in pools)
    fetching = len(pools)
    recording = sum(own_connections(each) > 1 for each in pools)
    listening, jobs = len(pools), sum(each.concurrent_jobs for each in pools)
    return own + listening + shared, (
        f"{fetching} to fetch, {recording} to record, {own - fetching - recording} for heartbeats, "
        f"{listening} to listen, {shared} for up to {jobs} running jobs and the API"
    )
