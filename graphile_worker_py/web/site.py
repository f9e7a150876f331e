"""One database that the application shows: its connections, and what is known about it."""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import config
from graphile_worker_py.errors import GraphileWorkerError, MigrationError, one_line
from graphile_worker_py.postgres.connecting import AsyncPool, opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query, Step, Steps
from graphile_worker_py.postgres.together import Together, side_by_side, together
from graphile_worker_py.schema import own
from graphile_worker_py.sql import web_tables
from graphile_worker_py.sql.census import Sizes, read_sizes
from graphile_worker_py.sql.migrations import BASELINE_REVISION
from graphile_worker_py.web.cache import Cache, Fact
from graphile_worker_py.web.census import Census
from graphile_worker_py.web.redact import Redaction
from graphile_worker_py.web.settings import Settings
from graphile_worker_py.worker_utils import WorkerUtils

logger = logging.getLogger(__name__)
T = TypeVar("T")

own.register_migrations(web_tables.LEAF, web_tables.MIGRATIONS)

REFUSAL_HOLDS: Final = 1.0
"""Seconds for which a database that could not be reached is not tried again."""
CONNECT_PATIENCE: Final = 5.0


class Site:
    """A database, opened at the first request, because mounted applications hear of no start.

    Args:
        source: As for `WorkerUtils`.
        settings: The settings of the application.

    Attributes:
        cache: Answers that requests share.
        has_tables: Whether the audit log and the stored answers have tables.
    """

    def __init__(self, source: str | AsyncPool | None, settings: Settings) -> None:
        self.settings = settings
        self.cache = Cache()
        self.redaction = Redaction(settings.redact)
        self.schema = config.schema_name(settings.schema)
        self.has_tables = False
        self._source = source
        self._stack = AsyncExitStack()
        self._turn = asyncio.Lock()
        self._database: Database | None = None
        self._utils: WorkerUtils | None = None
        self._census: Census | None = None
        self._refusal: tuple[float, BaseException] | None = None
        self._sizes: Sizes | None = None
        self._lasting: dict[str, tuple[float, Any]] = {}

    async def open(self) -> Database:
        """The database.

        Raises:
            psycopg.OperationalError: It can't be reached.
            MigrationError: The schema is missing or too old.
        """
        async with self._turn:
            if self._database is not None:
                return self._database
            now = asyncio.get_running_loop().time()
            if self._refusal is not None and now < self._refusal[0]:
                raise self._refusal[1]
            try:
                async with asyncio.timeout(CONNECT_PATIENCE):
                    return await self._open()
            except (psycopg.Error, OSError, GraphileWorkerError) as error:
                self._refusal = now + REFUSAL_HOLDS, error
                raise

    async def _open(self) -> Database:
        async with AsyncExitStack() as stack:
            source = self._source
            if not isinstance(source, str) and source is not None:
                pool: AsyncPool = source
                await pool.open()
            else:
                opened = opened_pool(config.conninfo(source), max_size=self.settings.pool_size)
                pool = await stack.enter_async_context(opened)
            utils = WorkerUtils(pool, schema=self.schema, migrate=False)
            await stack.enter_async_context(utils)
            database = Database(pool, schema=self.schema)
            await self._check_age(utils)
            self._sizes = await database.run(read_sizes(self.schema))
            if not self.is_read_only:
                await self._install(database)
            self.has_tables = await self._are_tables_ready(database)
            self._utils = utils
            self._census = Census(self.read, self.schema)
            stack.push_async_callback(self._census.close)
            self._stack = stack.pop_all()
        self._database = database
        return database

    async def _check_age(self, utils: WorkerUtils) -> None:
        revision = await utils.revision()
        if revision < BASELINE_REVISION:
            raise MigrationError(
                f"schema {self.schema!r} is at revision {revision}, which is too old: "
                f"`graphile-worker-py migrate` upgrades it"
            )

    async def _install(self, database: Database) -> None:
        """Create our tables if that is allowed; without them there is no audit log."""
        try:
            async with database.connection() as conn:
                await own.install(database, conn)
        except (psycopg.Error, GraphileWorkerError) as error:
            logger.warning("Working without audit log and idempotency keys (%s)", one_line(error))

    @staticmethod
    async def _are_tables_ready(database: Database) -> bool:
        try:
            return own.is_ready(web_tables.LEAF, await own.leaf_revisions(database))
        except psycopg.Error:
            return False

    async def close(self) -> None:
        """Close what was opened; the next request opens it again."""
        try:
            await (
                self._stack.aclose()
            )  # before it may open again: the count of jobs goes on till then
        finally:
            self._database = None

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be changed, by the settings or by the database."""
        if self.settings.read_only is not None:
            return self.settings.read_only
        return self._sizes is not None and self._sizes.is_read_only

    @property
    def is_replica(self) -> bool:
        """Whether the database is a replica."""
        return self._sizes is not None and self._sizes.is_replica

    async def utils(self) -> WorkerUtils:
        """The public functions on the same connections."""
        await self.open()
        assert self._utils is not None  # noqa: S101  # `open` has set it
        return self._utils

    async def census(self) -> Census:
        """The census of the jobs."""
        await self.open()
        assert self._census is not None  # noqa: S101  # `open` has set it
        return self._census

    async def read(self, query: Query[T]) -> T:
        """Send a statement that gets `statement_timeout` seconds."""
        database = await self.open()
        async with asyncio.timeout(self.settings.statement_timeout + CONNECT_PATIENCE):
            return await database.run(query, within=self.settings.statement_timeout)

    async def drive(self, steps: Steps[T], *, conn: AsyncConnection[Any] | None = None) -> T:
        """Send what a generator yields, each within `statement_timeout` seconds."""
        database = await self.open()
        async with asyncio.timeout(2 * self.settings.statement_timeout + CONNECT_PATIENCE):
            remembering = self._remembering(steps)
            return await database.drive(
                remembering, conn=conn, within=self.settings.statement_timeout
            )

    async def know(self, *facts: Fact[Any]) -> None:
        """Read what is not known yet of some facts, with as few statements as possible."""
        async with self.cache.missing(*facts) as missing:
            if missing:
                found = await self.drive(side_by_side(*(each.steps() for each in missing)))
                for fact, value in zip(missing, found, strict=True):
                    self.cache.keep(fact.key, fact.shared, value)

    async def fact(self, fact: Fact[T]) -> T:
        """A fact, which requests share."""
        return await self.cache.get(fact.key, fact.shared, lambda: self.drive(fact.steps()))

    def _remembering(self, steps: Steps[T]) -> Steps[T]:
        """The same steps without statements whose last result is still good."""
        try:
            step = next(steps)
            while True:
                try:
                    result = yield from self._remembered(step)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _remembered(self, step: Step) -> Steps[Any]:
        if not isinstance(step, Query):
            return (yield step)
        asked = step.queries if isinstance(step, Together) else [step]
        kept = {at: self._lasting.get(_key(each)) for at, each in enumerate(asked)}
        now = asyncio.get_running_loop().time()
        results = {at: each[1] for at, each in kept.items() if each is not None and each[0] > now}
        missing = {at: each for at, each in enumerate(asked) if at not in results}
        if len(missing) == 1:
            ((at, only),) = missing.items()
            results[at] = yield only
        elif missing:
            results |= zip(missing, (yield together(missing.values())), strict=True)
        for at, each in missing.items():
            if each.lasts:
                self._lasting[_key(each)] = now + each.lasts, results[at]
        found = [results[at] for at in range(len(asked))]
        return found if isinstance(step, Together) else found[0]

    def forget(self) -> None:
        """Forget all answers, also those that change seldom."""
        self.cache.clear()
        self._lasting.clear()

    async def changed(self) -> None:
        """Show a change at once."""
        self.cache.clear()
        await (await self.census()).fresh()


def _key(query: Query[Any]) -> str:
    return repr((query.text, query.values))
