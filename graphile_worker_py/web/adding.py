"""Add jobs for programs that speak HTTP only: once for each key, and not more than fit."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from psycopg import AsyncConnection, errors

from graphile_worker_py import json_codec
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.sql.census import count_ready
from graphile_worker_py.sql.web_tables import claim_answer, read_answer, store_answer
from graphile_worker_py.web import audit
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.problems import Fault, ProblemError, unavailable
from graphile_worker_py.web.site import Site
from graphile_worker_py.worker_utils import WorkerUtils

KEY_PATIENCE: Final = 0.1
"""Seconds to wait for another request with the same key."""
LONGEST_KEY: Final = 255
ESTIMATE_HOLDS: Final = 1.0
"""Seconds that a count of the backlog holds; what this process adds meanwhile is counted on top."""
MOST_AT_ONCE: Final = 64
"""Requests that add jobs at the same time; more are asked to try again."""


@dataclass(slots=True)
class _Estimate:
    until: float
    jobs: int


class Gate:
    """Keeps the backlog below its limit, and the memory of this process flat."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._estimates: dict[str | None, _Estimate] = {}
        # Admitted jobs that may not be committed yet: a count of the table does not see them.
        self._pending: Counter[str | None] = Counter()
        self._turn = asyncio.Lock()
        self._inside = 0

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Be one of the requests that add jobs."""
        if self._inside >= MOST_AT_ONCE:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{MOST_AT_ONCE} requests are adding jobs at this moment; try again",
                headers={"Retry-After": "1"},
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def admitted(self, tasks: Mapping[str, int]) -> AsyncIterator[None]:
        """Add some jobs of some tasks within the block.

        Raises:
            ProblemError: The backlog is at its limit (429).
        """
        taken: Counter[str | None] = Counter()
        try:
            for task, jobs in tasks.items():
                most = self._site.settings.backlog_limit(task)
                if most is not None:
                    # One number for all tasks, or one for each.
                    is_one = isinstance(self._site.settings.max_backlog, int)
                    key = None if is_one else task
                    await self._admit(key, jobs, most)
                    taken[key] += jobs
            yield
        finally:
            self._pending -= taken

    async def _admit(self, key: str | None, jobs: int, most: int) -> None:
        async with self._turn:
            now = asyncio.get_running_loop().time
            estimate = self._estimates.get(key)
            if estimate is None or estimate.until < now():
                began = now()
                ready = await self._site.read(count_ready(key, limit=most + 1))
                ready += self._pending[key]
                holds = max(ESTIMATE_HOLDS, 10 * (now() - began))
                estimate = self._estimates[key] = _Estimate(now() + holds, ready)
            if estimate.jobs + jobs > most:
                raise ProblemError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"{estimate.jobs:,} jobs are waiting, and at most {most:,} may",
                    headers={"Retry-After": str(max(1, round(estimate.until - now())))},
                    more={"estimate": estimate.jobs, "limit": most},
                )
            estimate.jobs += jobs
            self._pending[key] += jobs


def fingerprint(body: bytes) -> str:
    """What tells whether two requests with one key are the same."""
    return hashlib.sha256(body).hexdigest()


async def add(site: Site, access: Access, spec: JobSpec) -> Job:
    """Add a job, and record it."""
    database = await site.open()
    utils = await site.utils()
    async with database.transaction() as conn:
        return await _add(site, access, utils, spec, conn)


async def _add(
    site: Site, access: Access, utils: WorkerUtils, spec: JobSpec, conn: AsyncConnection[Any]
) -> Job:
    (job,) = await utils.add_jobs([spec], conn=conn)
    await audit.record(site, access, "add", count=1, job_id=job.id, conn=conn)
    return job


async def add_once(
    site: Site, access: Access, spec: JobSpec, *, key: str, print_: str
) -> tuple[int, bool]:
    """Add a job if no request with this key did; return its id, and whether it is new.

    Raises:
        ProblemError: The key is in use (409), or was used for something else (422).
    """
    _check_key(key)
    database = await site.open()
    if not site.has_tables:
        raise unavailable(
            "idempotency keys need the schema graphile_worker_py: run "
            "`graphile-worker-py migrate --side-schema`, or send no Idempotency-Key",
            retry_after=60,
        )
    utils = await site.utils()
    try:
        async with database.transaction() as conn:
            claim = claim_answer(site.schema, key, fingerprint=print_, patience=KEY_PATIENCE)
            if await database.run(claim, conn=conn):
                job = await _add(site, access, utils, spec, conn)
                answer = json_codec.dumps({"id": job.id}).decode()
                store = store_answer(site.schema, key, job_id=job.id, answer=answer)
                await database.run(store, conn=conn)
                return job.id, True
    except errors.LockNotAvailable as error:
        raise ProblemError(
            HTTPStatus.CONFLICT,
            "another request with this Idempotency-Key is still running; try again",
            headers={"Retry-After": "1"},
        ) from error
    return await _id_given_before(site, key, print_), False


def _check_key(key: str) -> None:
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"Idempotency-Key must have 1 to {LONGEST_KEY} printable characters",
            faults=[Fault("Idempotency-Key", "not allowed")],
        )


async def _id_given_before(site: Site, key: str, print_: str) -> int:
    stored = await site.read(read_answer(site.schema, key))
    if stored is None or stored.answer is None:
        raise ProblemError(HTTPStatus.CONFLICT, "the Idempotency-Key has just expired; try again")
    if stored.fingerprint != print_:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used for another request",
            faults=[Fault("Idempotency-Key", "used for another request")],
        )
    return int(json_codec.loads(stored.answer)["id"])
