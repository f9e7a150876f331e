"""Programs of tests: they open something, fork, and use it in the children.

`python -m tests.forking NAME DSN` prints one line for each child and one for the parent.
"""

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import psycopg_pool

from graphile_worker_py import JobSpec, SyncWorkerUtils, WorkerUtils

CHILDREN = 3
JOBS = 20


def add(utils: SyncWorkerUtils, name: str) -> str:
    """Add jobs, and look whether each result is the job that was added."""
    try:
        for n in range(JOBS):
            job = utils.add_job("work", [name, n])
            assert job.payload == [name, n], f"{job.payload} came back for {[name, n]}"
        specs = [JobSpec("work", [name, n], job_key=f"{name}-{n}") for n in range(JOBS)]
        assert [job.payload for job in utils.add_jobs(specs)] == [[name, n] for n in range(JOBS)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def in_children(work: Callable[[str], str]) -> None:
    """Do something in several children at once, and print what each of them says."""
    pids = []
    for number in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            try:
                said = work(f"child {number}")
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(1, f"{said}\n".encode())
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def sync(dsn: str) -> None:
    """Use SyncWorkerUtils, and leave it in one child in order."""
    with SyncWorkerUtils(dsn) as utils:
        with utils.pool.connection() as conn:
            session = conn.info.backend_pid

        def work(name: str) -> str:
            said = add(utils, name)
            with utils.pool.connection() as conn:
                assert conn.info.backend_pid != session
            utils.__exit__(None, None, None)
            return said

        in_children(work)
        print(add(utils, "parent"))
        with utils.pool.connection() as conn:
            print("the same session" if conn.info.backend_pid == session else "another session")


def grandchildren(dsn: str) -> None:
    """Use SyncWorkerUtils in children, and in their children."""
    with SyncWorkerUtils(dsn) as utils:

        def work(name: str) -> str:
            before = add(utils, name)
            if os.fork() == 0:
                os.write(1, f"{add(utils, f'child of {name}')}\n".encode())
                os._exit(0)
            os.wait()
            return before

        in_children(work)
        print(add(utils, "parent"))


def pool(dsn: str) -> None:
    """Use SyncWorkerUtils with a pool of the program's own."""
    with (
        psycopg_pool.ConnectionPool(dsn, min_size=1, open=True) as own,
        SyncWorkerUtils(own) as utils,
    ):
        in_children(lambda name: add(utils, name))
        print(add(utils, "parent"))


def processes(dsn: str) -> None:
    """Use SyncWorkerUtils in processes of multiprocessing that end as Python programs do."""
    utils = SyncWorkerUtils(dsn).__enter__()
    context = multiprocessing.get_context("fork")

    def work(name: str) -> None:
        os.write(1, f"{add(utils, name)}\n".encode())

    started = [context.Process(target=work, args=(f"child {n}",)) for n in range(CHILDREN)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    print(add(utils, "parent"))
    utils.__exit__(None, None, None)


def loop(dsn: str) -> None:
    """Use WorkerUtils."""

    async def main() -> None:
        async with WorkerUtils(dsn) as utils:

            def work(_name: str) -> str:
                asyncio._set_running_loop(None)
                try:
                    asyncio.run(utils.add_job("work"))
                except Exception as error:
                    return f"{type(error).__name__}: {error}"
                return "ok"

            in_children(work)
            print((await utils.add_job("work", 1)).payload)

    asyncio.run(main())


PROGRAMS: dict[str, Any] = {
    program.__name__: program for program in (sync, grandchildren, pool, processes, loop)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2])
    sys.stdout.flush()
    print(json.dumps("end"))
