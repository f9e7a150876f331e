"""How many connections worker pools have, and what for."""

from collections.abc import Collection, Mapping

from graphile_worker_py.options import WorkerOptions


def own_connections(options: WorkerOptions) -> int:
    """How many connections that tasks do not use a pool has.

    The first one fetches, the second one records. The third one sends heartbeats; it is the same
    one for all pools of a runner, as the one that listens, which is not counted here.
    """
    return min(2 if options.no_side_schema else 3, options.max_pool_size - 1)


def kept_connections(pools: Collection[WorkerOptions]) -> int:
    """How many connections that tasks do not use the pools of a runner have together."""
    own = [own_connections(each) for each in pools]
    return sum(min(2, each) for each in own) + any(each > 2 for each in own)


def connections_of(name: str, pools: Mapping[str, WorkerOptions], *, most: int) -> int:
    """How many connections a pool may open, the one that listens included.

    Those that belong to all pools count for the first one, so that the numbers of the pools add up.

    Args:
        name: The pool.
        pools: The options of each pool of the runner.
        most: The connections that all pools may open together, without the one that listens.
    """
    first, *others = pools
    of_others = {
        each: pools[each].max_pool_size - (own_connections(pools[each]) > 2) for each in others
    }
    return most + 1 - sum(of_others.values()) if name == first else of_others[name]


def formula(pools: Collection[WorkerOptions], *, shared: int) -> tuple[int, str]:
    """How many connections pools may open, and in words what for.

    Args:
        pools: The options of each.
        shared: How many connections their jobs share with the API.
    """
    kept = kept_connections(pools)
    fetching = len(pools)
    recording = sum(own_connections(each) > 1 for each in pools)
    jobs = sum(each.concurrent_jobs for each in pools)
    return kept + 1 + shared, (
        f"{fetching} to fetch, {recording} to record, {kept - fetching - recording} for "
        f"heartbeats, 1 to listen, {shared} for up to {jobs} running jobs and the API"
    )
