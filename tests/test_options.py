"""Options: what is allowed, and how a wrong one is told."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    Events,
    HistoryRetention,
    LocalQueueOptions,
    RefetchDelay,
    Runner,
    SyncWorkerUtils,
    WorkerOptions,
    WorkerUtils,
    load_tasks,
    run_migrations,
    run_once,
)
from graphile_worker_py.loading.directory import watch_tasks
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.schema import migrate
from tests.support.running import Jobs

GOOD: list[dict[str, Any]] = [
    {},
    {"schema": 'Other-S "quoted"'},
    {"schema": "x" * 63},
    {"concurrent_jobs": 500},
    {"poll_interval": 0.001},
    {"max_pool_size": 2},
    {"prepared_statements": False},
    {"forbidden_flags": []},
    {"forbidden_flags": ("a", "b")},
    {"forbidden_flags": lambda: None},
    {"local_queue": LocalQueueOptions(1, ttl=0)},
    {"local_queue": LocalQueueOptions(refetch_delay=RefetchDelay(duration=2))},
    {"complete_job_batch_delay": 0, "fail_job_batch_delay": -1},
    {"min_reset_locked_interval": 1, "max_reset_locked_interval": 1},
    {"graceful_shutdown_abort_timeout": 0},
    {"no_side_schema": True},
    {"heartbeat_interval": 0.5, "dead_after": 1},
    {"history": "all", "history_payloads": True, "result_limit": 1024**2},
    {"history_retention": HistoryRetention(completed="1d12h", failed=timedelta(weeks=2))},
    {"max_crashes": 0},
    {"max_crashes": 2},
    {"listen_connection_string": "host=direct", "listen_echo_interval": 0},
    {"watchdog_timeout": 0},
    {"use_node_time": True},
    {"worker_id": "worker-of-ours", "concurrent_jobs": 1},
    {"get_queue_name_batch_delay": 0},
]
BAD: list[tuple[str, list[Any]]] = [
    ("schema", ["", "x" * 64, "\N{SNOWMAN}" * 22, "a\0b", "a\nb", "a\rb", "a\x1bb", "a\x7fb", 7]),
    ("concurrent_jobs", [0, -1, 1.0, True, "4"]),
    ("poll_interval", [0, -1, float("inf"), float("nan"), "2", True]),
    ("max_pool_size", [1, 0, 3.0]),
    ("prepared_statements", [1, "yes"]),
    ("forbidden_flags", ["red", [1], b"red", 7, {"red"}]),
    ("local_queue", [5, {"size": 5}]),
    ("complete_job_batch_delay", [-2, -0.5, float("nan"), "0", True]),
    ("fail_job_batch_delay", [-2, float("inf")]),
    ("min_reset_locked_interval", [0, -1, float("inf"), 601]),
    ("max_reset_locked_interval", [0, 479]),
    ("graceful_shutdown_abort_timeout", [-1, float("nan"), "5"]),
    ("no_side_schema", [1, "yes"]),
    ("history", ["some", "", 7, True]),
    ("history_retention", [5, "3d"]),
    ("history_payloads", [1, "yes"]),
    ("recording_durability", ["off", "", 7, True]),
    ("result_limit", [0, -1, 1024**2 + 1, "64"]),
    ("heartbeat_interval", [0, -1, 4.1, "2"]),
    ("dead_after", [0, 3.9, float("inf")]),
    ("max_crashes", [1, -1, 2.0, True, False]),
    ("listen_connection_string", ["", 7]),
    ("listen_echo_interval", [-1, float("inf"), "30"]),
    ("watchdog_timeout", [-1, float("nan"), "60", True]),
    ("use_node_time", [1, "yes"]),
    ("worker_id", ["", 7]),
    ("get_queue_name_batch_delay", [-1, float("inf"), "0.05"]),
]


@pytest.mark.parametrize(
    "options", GOOD, ids=lambda options: re.sub(" at 0x[0-9a-f]+", "", str(options))
)
def test_values_that_make_sense_are_taken(options: dict[str, Any]) -> None:
    made = WorkerOptions(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD for value in values]
)
def test_a_value_that_makes_no_sense_is_refused_with_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name) as refused:
        WorkerOptions(**{name: value})
    # The message shows the value, too.
    shown = str(value) if name.endswith("locked_interval") else repr(value)
    assert shown in str(refused.value) or isinstance(value, list)


@pytest.mark.parametrize(
    "value", ["0d", "", "3", "d3", "3 d", "-3d", "99999999w", 3, None, timedelta(0)]
)
@pytest.mark.parametrize("name", ["completed", "failed", "counters"])
def test_a_retention_that_is_no_duration_above_0_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^history_retention\.{name} must be "):
        HistoryRetention(**{name: value})
    with pytest.raises(ConfigurationError, match=rf"^history_retention\.{name} must be "):
        Runner("", tasks={"work": print}, history_retention={name: value})


def test_a_retention_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown key 'done' in history_retention"):
        Runner("", tasks={"work": print}, history_retention={"done": "3d"})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"size": 0}, "local_queue.size"),
        ({"size": -2}, "local_queue.size"),
        ({"size": 1.5}, "local_queue.size"),
        ({"ttl": -1}, "local_queue.ttl"),
        ({"ttl": float("inf")}, "local_queue.ttl"),
    ],
)
def test_a_local_queue_that_makes_no_sense_is_refused(arguments: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        LocalQueueOptions(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"duration": -1}, "refetch_delay.duration"),
        ({"duration": 1, "threshold": -1}, "refetch_delay.threshold"),
        ({"duration": 1, "max_abort_threshold": -1}, "refetch_delay.max_abort_threshold"),
    ],
)
def test_a_refetch_delay_that_makes_no_sense_is_refused(arguments: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RefetchDelay(**arguments)


def test_a_refetch_delay_must_not_be_longer_than_the_poll_interval() -> None:
    rest = LocalQueueOptions(5, refetch_delay=RefetchDelay(duration=2.5))
    with pytest.raises(ConfigurationError, match=r"duration 2\.5 is above poll_interval 2\.0"):
        WorkerOptions(local_queue=rest)
    WorkerOptions(local_queue=rest, poll_interval=2.5)


def test_a_worker_id_is_for_one_worker() -> None:
    with pytest.raises(ConfigurationError, match=r"worker_id 'w' .* concurrent_jobs is 2"):
        WorkerOptions(worker_id="w", concurrent_jobs=2)


def test_none_means_not_given() -> None:
    none: dict[str, Any] = dict.fromkeys(
        ("schema", "concurrent_jobs", "poll_interval", "local_queue", "events", "logger", "hooks")
    )
    Runner("postgresql://", tasks={"work": print}, **none)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taks": {"work": print}}, "unknown option 'taks'; did you mean 'tasks'\\?"),
        (
            {"tasks": {"work": print}, "concurent_jobs": 3},
            "unknown option 'concurent_jobs'; did you mean 'concurrent_jobs'\\?",
        ),
        ({"tasks": {"work": print}, "xyz": 3}, "unknown option 'xyz'; options are .*tasks, use_"),
        ({"tasks": {"work": print}, "task_directory": "tasks"}, "both given"),
        ({}, "neither tasks nor task_directory"),
        (
            {"tasks": {"work": print}, "crontab": "* * * * * work", "crontab_file": "x"},
            "were given",
        ),
        ({"tasks": {"work": print}, "concurrent_jobs": 0}, "concurrent_jobs"),
    ],
)
async def test_wrong_options_are_told_before_anything_is_connected(
    options: dict[str, Any], message: str
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    with pytest.raises(ConfigurationError, match=message):
        Runner(nowhere, **options)
    with pytest.raises(ConfigurationError, match=message):
        await run_once(nowhere, **options)


async def test_a_connection_string_that_is_none_is_told_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="can't be understood") as refused:
        await run_once("postgresql://me:secret@host/db?no_such_word=1", tasks={"work": print})
    assert "secret" not in str(refused.value)
    # libpq would stop reading there, and reach for another database than what is written.
    with pytest.raises(ConfigurationError, match="can't be understood"):
        await run_once("postgresql://host/one\0two", tasks={"work": print})


async def test_migrations_refuse_a_wrong_value_before_anything_is_connected() -> None:
    with pytest.raises(ConfigurationError, match="side_schema must be True or False, not 'no'"):
        await run_migrations("postgresql://nobody@127.0.0.1:1/nothing", side_schema="no")  # type: ignore[arg-type]


async def test_a_line_feed_in_the_name_of_the_schema_runs_nothing(empty_dsn: str) -> None:
    schema = "jobs\n;create table public.hacked();--"
    with pytest.raises(ConfigurationError, match="no control characters"):
        await run_migrations(empty_dsn, schema=schema)
    await check_nothing_is_run_by(schema, empty_dsn)


@pytest.mark.parametrize(
    "name", ["$function$;create table public.hacked();--", "$function_$", "$$", "$function"]
)
async def test_a_dollar_quote_in_the_name_of_the_schema_runs_nothing(
    empty_dsn: str, name: str
) -> None:
    await check_nothing_is_run_by(f"jobs{name}", empty_dsn)
    async with WorkerUtils(empty_dsn, schema=f"jobs{name}") as utils:
        await utils.add_job("work")


async def check_nothing_is_run_by(schema: str, empty_dsn: str) -> None:
    """Install into a schema of this name, past all checks of it; nothing else happens."""
    async with opened_pool(empty_dsn, max_size=1) as pool:
        await migrate.migrate(Database(pool, schema=schema))
    jobs = Jobs(empty_dsn)
    assert jobs.query("select to_regclass('public.hacked') is null as safe") == [{"safe": True}]
    assert jobs.query("select nspname from pg_namespace where nspname like 'jobs%%'") == [
        {"nspname": schema}
    ]


async def test_the_schema_may_have_any_name(empty_dsn: str) -> None:
    schema = 'Other-S "x" :GRAPHILE_WORKER_SCHEMA $1 %s'
    seen: list[Any] = []

    async def work(payload: Any, ctx: Any) -> None:
        seen.append(payload)
        if payload["n"]:
            await ctx.add_job("work", {"n": payload["n"] - 1}, queue_name="q")

    options: dict[str, Any] = {"tasks": {"work": work}, "schema": schema}
    async with Runner(empty_dsn, **options) as runner:
        await runner.add_job("work", {"n": 2})
        await runner.stop()
    await run_once(empty_dsn, **options)
    assert [payload["n"] for payload in seen] == [2, 1, 0]


WRONG_KINDS: list[tuple[str, Any, str]] = [
    ("events", 3, "events must be an object made by Events(), not 3"),
    ("events", Events, "events must be an object made by Events(), not <class"),
    ("logger", "x", "logger must be a logging.Logger, not 'x'"),
    ("crontab", ["* * * * * work"], "crontab must be the text of a crontab, not ['* * *"),
    ("crontab_file", 3, "crontab_file must be a path, not 3"),
    ("parsed_cron_items", [1], "parsed_cron_items must be a list of what parse_cron_items"),
    ("parsed_cron_items", [1], "; got 1"),
    ("parsed_cron_items", "x", "return, not 'x'"),
    ("parsed_cron_items", 7, "return, not 7"),
    ("no_handle_signals", "yes", "no_handle_signals must be True or False, not 'yes'"),
    ("watchdog_exit", "x", "watchdog_exit must be True or False, not 'x'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_KINDS)
async def test_an_option_of_the_wrong_kind_is_named_with_what_is_allowed(
    name: str, value: Any, message: str
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    options: Any = {"tasks": {"work": print}, name: value}
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Runner(nowhere, **options)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        await run_once(nowhere, **options)


@pytest.mark.parametrize("value", [3, ["tasks"]])
async def test_a_task_directory_that_is_no_path_is_refused(value: Any) -> None:
    message = re.escape(f"task_directory must be a path, not {value!r}")
    with pytest.raises(ConfigurationError, match=message):
        Runner("", task_directory=value)
    with pytest.raises(ConfigurationError, match=message):
        load_tasks(value)
    with pytest.raises(ConfigurationError, match=message):
        await anext(watch_tasks(value))


@pytest.mark.parametrize(
    ("source", "shown"),
    [(5, "5"), (b"postgresql://me:secret@host/db", "a bytes"), ({"password": "secret"}, "a dict")],
)
async def test_a_source_that_is_no_database_is_refused_at_once(source: Any, shown: str) -> None:
    asked: list[Callable[[], object]] = [
        lambda: Runner(source, tasks={"work": print}),
        lambda: WorkerUtils(source),
        lambda: SyncWorkerUtils(source),
    ]
    for make in asked:
        with pytest.raises(ConfigurationError, match="source must be a connection string") as told:
            make()
        assert str(told.value).endswith(f"or None, not {shown}")
    for call in (run_migrations(source), run_once(source, tasks={"work": print})):
        with pytest.raises(ConfigurationError, match="an AsyncConnectionPool or None"):
            await call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pool_size": 0}, "max_pool_size must be a whole number of at least 1, not 0"),
        ({"prepared_statements": "no"}, "prepared_statements must be True or False, not 'no'"),
        ({"use_node_time": 1}, "use_node_time must be True or False, not 1"),
    ],
)
def test_wrong_options_of_worker_utils_are_refused_at_once(options: Any, message: str) -> None:
    for kind in (WorkerUtils, SyncWorkerUtils):
        with pytest.raises(ConfigurationError, match=message):
            kind("", **options)
