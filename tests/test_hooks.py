"""Plugins take part in migrating, fetching and running."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    Events,
    Fetched,
    FetchRequest,
    GraphileWorkerError,
    JobContext,
    Plugin,
    SchemaStep,
    WorkerUtils,
    run_migrations,
    run_once,
)
from graphile_worker_py.events import JobSuccess
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server


async def ran(dsn: str, *plugins: Any, payloads: list[Any], flags: list[str] | None = None) -> Any:
    """Add a job a payload, run what is due; what the task saw, and the jobs that are left."""
    seen: list[Any] = []

    async def note(payload: Any) -> str:
        seen.append(payload)
        return "noted"

    async with WorkerUtils(dsn) as utils:
        for payload in payloads:
            await utils.add_job("note", payload, flags=flags)
        await run_once(dsn, tasks={"note": note}, hooks=plugins)
        async with utils.pool.connection() as conn:
            cursor = await conn.execute(
                "select attempts, last_error from graphile_worker.jobs order by id"
            )
            return seen, await cursor.fetchall()


async def test_run_job_wraps_the_task_the_first_plugin_outermost(dsn: str) -> None:
    order: list[str] = []

    class Outer(Plugin):
        async def run_job(
            self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
        ) -> Any:
            order.append(f"outer before {ctx.job.task_identifier}")
            result = await proceed(ctx)
            order.append(f"outer after {result}")
            return result

    class Inner(Plugin):
        async def run_job(
            self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
        ) -> Any:
            order.append("inner before")
            return await proceed(ctx)

    seen, left = await ran(dsn, Outer(), Inner, payloads=[1])
    assert order == ["outer before note", "inner before", "outer after noted"]
    assert (seen, left) == ([1], [])


async def test_run_job_is_given_the_context_of_tasks_of_every_kind(dsn: str) -> None:
    seen: dict[str, JobContext] = {}

    class Watch(Plugin):
        async def run_job(
            self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
        ) -> Any:
            seen[ctx.job.task_identifier] = ctx
            if ctx.job.task_identifier != "followed":
                await ctx.add_job("followed", run_at=datetime(2100, 1, 1, tzinfo=UTC))
            return await proceed(ctx)

    async def waits(payload: Any) -> None: ...

    def blocks(payload: Any) -> None: ...

    jobs = Jobs(dsn)
    jobs.add("waits")
    jobs.add("blocks")
    await run_once(dsn, tasks={"waits": waits, "blocks": blocks}, hooks=[Watch()])
    assert set(seen) == {"waits", "blocks"}
    for ctx in seen.values():
        assert ctx.worker_id.startswith("worker-")
        assert ctx.pool_id == ctx.job.locked_by
    assert [job["task_identifier"] for job in jobs.all()] == ["followed", "followed"]


async def test_an_error_in_a_plugin_fails_the_job(dsn: str) -> None:
    class Guard(Plugin):
        async def run_job(
            self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
        ) -> Any:
            if ctx.job.payload == 1:
                raise PermissionError("not this one")
            return await proceed(ctx)

    seen, left = await ran(dsn, Guard(), payloads=[1, 2])
    assert (seen, left) == ([2], [(1, "not this one")])


async def test_a_plugin_may_skip_the_task_and_the_job_is_done(dsn: str) -> None:
    class Skip(Plugin):
        async def run_job(
            self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
        ) -> Any:
            return None

    assert await ran(dsn, Skip(), payloads=[1]) == ([], [])


async def test_a_plugin_may_leave_jobs_to_others(dsn: str) -> None:
    class NotHere(Plugin):
        async def get_jobs(
            self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
        ) -> Fetched:
            return await proceed(replace(request, forbidden_flags=["eu"]))

    assert await ran(dsn, NotHere(), payloads=[1], flags=["eu"]) == ([], [(0, None)])


async def test_a_plugin_may_veto_a_fetch(dsn: str) -> None:
    class Closed(Plugin):
        async def get_jobs(
            self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
        ) -> Fetched:
            return Fetched([], more=False)

    assert await ran(dsn, Closed(), payloads=[1]) == ([], [(0, None)])


async def test_jobs_that_a_plugin_keeps_back_are_returned_with_their_attempt(dsn: str) -> None:
    class Keep(Plugin):
        async def get_jobs(
            self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
        ) -> Fetched:
            await proceed(request)
            return Fetched([], more=False)

    assert await ran(dsn, Keep(), payloads=[1, 2]) == ([], [(0, None), (0, None)])
    assert await ran(dsn, payloads=[]) == ([1, 2], [])


async def test_a_plugin_that_answers_a_fetch_with_something_else_is_told(dsn: str) -> None:
    class Forgetful(Plugin):
        async def get_jobs(  # type: ignore[override]
            self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
        ) -> None:
            await proceed(request)

    with pytest.raises(GraphileWorkerError, match=r"get_jobs of a plugin must return .*, not None"):
        await ran(dsn, Forgetful(), payloads=[1])
    assert await ran(dsn, payloads=[]) == ([1], [])


async def test_a_plugin_may_ask_for_no_jobs(dsn: str) -> None:
    class Full(Plugin):
        async def get_jobs(
            self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
        ) -> Fetched:
            return await proceed(replace(request, count=0))

    assert await ran(dsn, Full(), payloads=[1]) == ([], [(0, None)])


async def test_plugins_see_the_schema_being_made_and_migrated(empty_dsn: str) -> None:
    steps: list[str] = []

    class Watch(Plugin):
        async def bootstrap(
            self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
        ) -> None:
            await proceed(step)
            steps.append(f"bootstrapped {step.schema}")

        async def migrate(
            self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
        ) -> None:
            assert step.server_version >= 120000
            await proceed(step)
            cursor = await step.conn.execute("select max(id) from graphile_worker.migrations")
            steps.append(f"migrated to {(await cursor.fetchone() or [None])[0]}")

    async def nothing(payload: Any) -> None: ...

    await run_once(empty_dsn, tasks={"nothing": nothing}, hooks=[Watch()])
    assert steps == ["bootstrapped graphile_worker", "migrated to 20"]
    await run_once(empty_dsn, tasks={"nothing": nothing}, hooks=[Watch()])
    assert steps[2:] == ["migrated to 20"]


async def test_plugins_take_part_in_a_migration_without_a_worker(empty_dsn: str) -> None:
    steps: list[str] = []

    class Watch(Plugin):
        async def bootstrap(
            self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
        ) -> None:
            await proceed(step)
            steps.append("bootstrapped")

        async def migrate(
            self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
        ) -> None:
            await proceed(step)
            steps.append("migrated")

    for _ in range(2):
        await run_migrations(empty_dsn, hooks=[Watch])
    assert steps == ["bootstrapped", "migrated", "migrated"]


async def test_a_plugin_may_subscribe_to_events(dsn: str) -> None:
    successes: list[int] = []

    class Count(Plugin):
        def setup(self, events: Events) -> None:
            events.subscribe(JobSuccess, lambda event: successes.append(event.job.id))

    await ran(dsn, Count(), payloads=[1, 2])
    assert len(successes) == 2


RAN: list["OfAPackage"] = []


class OfAPackage(Plugin):
    """What an installed package would offer."""

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        RAN.append(self)
        return await proceed(ctx)


PLUGIN = OfAPackage()


def install(folder: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an installed package offer a plugin under the name `watcher`."""
    about = folder / "some_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[graphile_worker_py.plugins]\nwatcher = {target}\n")
    monkeypatch.syspath_prepend(str(folder))


async def test_an_installed_plugin_is_found_by_its_name(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RAN.clear()
    install(tmp_path, f"{__name__}:OfAPackage", monkeypatch)
    await ran(dsn, "watcher", payloads=[1])
    assert len(RAN) == 1


async def test_a_plugin_is_found_by_its_path(dsn: str) -> None:
    RAN.clear()
    await ran(dsn, f"{__name__}:PLUGIN", payloads=[1])
    assert RAN == [PLUGIN]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("\nimport nowhere_to_be_found\n", r"ModuleNotFoundError: .* \(.*wa_plugin.py, line 2\)$"),
        ("def (:\n", r"SyntaxError: invalid syntax \(.*wa_plugin.py, line 1\)$"),
        ("raise SystemExit('no')\n", r"SystemExit: no \(.*wa_plugin.py, line 1\)$"),
        ("x = 1\n", r"AttributeError: module 'wa_plugin' has no attribute 'Watcher'$"),
    ],
)
async def test_an_installed_plugin_that_does_not_load_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, cause: str
) -> None:
    install(tmp_path, "wa_plugin:Watcher", monkeypatch)
    (tmp_path / "wa_plugin.py").write_text(source)
    told = f"plugin 'watcher' can't be loaded from 'wa_plugin:Watcher': {cause}"
    try:
        with pytest.raises(ConfigurationError, match=told):
            await run_once("", tasks={"nothing": print}, hooks=["watcher"])
    finally:
        sys.modules.pop("wa_plugin", None)


async def test_a_plugin_that_can_not_be_made_is_named_with_the_cause() -> None:
    class Broken(Plugin):
        def __init__(self) -> None:
            raise LookupError("no key")

    with pytest.raises(ConfigurationError, match=r"Broken'> can't be made: LookupError: no key \("):
        await run_once("", tasks={"nothing": print}, hooks=[Broken])


async def test_a_plugin_that_can_not_be_set_up_is_named_with_the_cause() -> None:
    class Broken(Plugin):
        def setup(self, events: Events) -> None:
            events.subscribe("job:strat", print)

    class Unawaited(Plugin):
        async def setup(self, events: Events) -> None:  # type: ignore[override]
            raise AssertionError("never called")

    with pytest.raises(
        ConfigurationError, match=r"Broken .* can't be set up: Conf.*'job:strat'.*line \d+\)"
    ):
        await run_once("", tasks={"nothing": print}, hooks=[Broken()])
    with pytest.raises(ConfigurationError, match=r"Unawaited .* must be a plain function"):
        await run_once("", tasks={"nothing": print}, hooks=[Unawaited()])


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (["no-such"], "no installed package offers a plugin 'no-such'"),
        (["no such:Plugin"], "'no such:Plugin' must be a path such as 'package.module:Class'"),
        (["nowhere.found:Plugin"], "plugin 'nowhere.found:Plugin' can't be loaded: ModuleNotF"),
        (["tests.test_hooks:Absent"], "can't be loaded: AttributeError: .*'Absent'"),
        (["tests.test_hooks:install"], "<function install at .*> is not a plugin"),
        ([42], "42 is not a plugin"),
        ("watcher", "hooks must be a list of plugins, not 'watcher'"),
        (Plugin(), "hooks must be a list of plugins"),
    ],
)
async def test_what_is_no_plugin_is_named(hooks: Any, message: str) -> None:
    async def nothing(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=message):
        await run_once("", tasks={"nothing": nothing}, hooks=hooks)
