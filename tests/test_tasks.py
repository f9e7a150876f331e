"""`@task`, and the lists of tasks that a worker takes."""

import asyncio
import functools
import runpy
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from graphile_worker_py import (
    ConfigurationError,
    JobContext,
    ProcessJobContext,
    SyncJobContext,
    Task,
    run_once,
    task,
)
from graphile_worker_py.tasks.task import check_tasks, task_list
from tests.support.running import Jobs

Context: TypeAlias = JobContext


@task
async def bare(payload: Any) -> Any:
    """Documented."""
    return payload


@task("other/name", timeout=1.5)
def named(payload: Any, ctx: Any) -> None: ...


@task()
async def called(payload: Any) -> None: ...


class Callable:
    """An object that can be a task."""

    async def __call__(self, payload: Any) -> None: ...

    async def method(self, payload: Any, ctx: Any) -> None: ...


def test_the_identifier_is_the_functions_name_or_what_is_given() -> None:
    assert (bare.identifier, named.identifier, called.identifier) == (
        "bare",
        "other/name",
        "called",
    )
    assert (bare.timeout, named.timeout) == (None, 1.5)
    assert (bare.is_async, named.is_async) == (True, False)


def test_a_task_can_still_be_called_and_looks_like_its_function() -> None:
    assert asyncio.run(bare({"a": 1})) == {"a": 1}
    assert getattr(bare, "__name__") == "bare"  # noqa: B009  # set at run time
    assert bare.__doc__ == "Documented."
    assert repr(named) == "Task('other/name')"


@pytest.mark.parametrize(
    ("function", "arguments", "is_async"),
    [
        (lambda: None, 0, False),
        (lambda payload: None, 1, False),
        (lambda payload, ctx: None, 2, False),
        (lambda payload, ctx=None, more=1: None, 2, False),
        (lambda payload, *, option=1: None, 1, False),
        (functools.partial(named.function, ctx=1), 1, False),
        (functools.partial(bare.function), 1, True),
        (Callable(), 1, True),
        (Callable().method, 2, True),
        (print, 1, False),
        (dict.fromkeys, 1, False),
    ],
)
def test_a_task_is_given_what_it_asks_for(function: Any, arguments: int, is_async: bool) -> None:
    made: Task[Any] = Task(function, "t")
    assert (made.arguments, made.is_async) == (arguments, is_async)


def generator(payload: Any) -> Iterator[int]:
    yield 1


async def async_generator(payload: Any) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (7, "must be callable"),
        (generator, "generator"),
        (async_generator, "generator"),
        (lambda payload, ctx, more: None, "'more'"),
        (lambda payload, *, option: None, "'option'"),
    ],
)
def test_what_cannot_be_called_with_payload_and_context_is_refused(
    function: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        Task(function, "mine")
    assert "'mine'" in str(refused.value)


class Records:
    """A class, which is no task."""

    def __init__(self, payload: Any) -> None: ...


def decorated(function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def of_fields(to: str, subject: str) -> None: ...
async def with_helpers(payload: Any, helpers: Any = None) -> None: ...
async def context_first(ctx: JobContext, payload: Any) -> None: ...
async def context_only(ctx) -> None: ...  # type: ignore[no-untyped-def]
async def quoted_first(job: "JobContext | None", payload: Any) -> None: ...
async def unknown_first(job: "contexts.JobContext", payload: Any) -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def of_thread(payload: Any, ctx: SyncJobContext) -> None: ...
async def of_process(payload: Any, ctx: "ProcessJobContext | None" = None) -> None: ...
async def by_keyword(payload: Any, *, ctx: JobContext | None = None) -> None: ...
def plain_of_loop(payload: Any, ctx: JobContext) -> None: ...
def plain(payload: Any, ctx: SyncJobContext) -> None: ...


LOOP_FORM = r"async def (\w+)\(payload, ctx: JobContext\)$"
THREAD_FORM = r": def (\w+)\(payload, ctx: SyncJobContext\)$"


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (of_fields, {}, f"'subject' after its payload.*{LOOP_FORM}"),
        (with_helpers, {}, f"'helpers' after its payload.*{LOOP_FORM}"),
        (lambda to, subject="x": None, {}, f"'subject' after its payload.*{THREAD_FORM}"),
        (context_first, {}, f"context first, as 'ctx'.*{LOOP_FORM}"),
        (context_only, {}, f"context first, as 'ctx'.*{LOOP_FORM}"),
        (quoted_first, {}, f"context first, as 'job'.*{LOOP_FORM}"),
        (unknown_first, {}, f"context first, as 'job'.*{LOOP_FORM}"),
        (lambda context, payload: None, {}, f"context first, as 'context'.*{THREAD_FORM}"),
        (of_thread, {}, f"asks for a SyncJobContext, but gets a JobContext.*{LOOP_FORM}"),
        (of_process, {}, f"asks for a ProcessJobContext, but gets a JobContext.*{LOOP_FORM}"),
        (by_keyword, {}, f"'ctx' by keyword.*{LOOP_FORM}"),
        (plain_of_loop, {}, f"asks for a JobContext, but gets a SyncJobContext.*{THREAD_FORM}"),
        (plain, {"executor": "inline"}, r"gets a JobContext.*: def plain\(payload, ctx: JobC"),
        (plain, {"executor": "process"}, r"def plain\(payload, ctx: ProcessJobContext\)$"),
        (lambda *args: None, {}, rf"\*args \(.*functools.wraps.*{THREAD_FORM}"),
        (lambda payload, **options: None, {}, rf"\*\*options, but .*{THREAD_FORM}"),
        (decorated(plain), {}, rf"\*args \(.*functools.wraps.*{THREAD_FORM}"),
        (Records, {}, f"is a class.*{THREAD_FORM}"),
        (functools.partial(Records), {}, f"is a class.*{THREAD_FORM}"),
    ],
)
def test_a_signature_of_another_kind_is_refused_with_the_right_form(
    function: Any, options: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        task("mine", **options)(function)
    assert str(refused.value).startswith("task 'mine' ")


class MyContext(JobContext):
    """A class of the user's."""


async def annotated(payload: Any, job: JobContext) -> None: ...
async def quoted(payload: Any, job: "JobContext | None") -> None: ...
async def aliased(payload: Any, job: "Context") -> None: ...
async def unknown(payload: Any, job: "contexts.JobContext") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def either(payload: Any, job: JobContext | SyncJobContext) -> None: ...
async def derived(payload: Any, job: MyContext) -> None: ...
async def named_so(payload: Any, _context: "Unknown") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def payload_named_so(context: dict[str, Any], ctx: Any) -> None: ...


@pytest.mark.parametrize(
    "function",
    [annotated, quoted, aliased, unknown, either, derived, named_so, payload_named_so],
)
def test_a_context_is_known_by_its_name_or_its_annotation(function: Any) -> None:
    assert Task(function, "mine").arguments == 2


if sys.version_info >= (3, 14):  # annotations are evaluated when they are asked for

    def test_annotations_that_only_type_checkers_import_are_not_evaluated(tmp_path: Path) -> None:
        made = runpy.run_path(str(write_module(tmp_path)))
        assert made["work"].arguments == 2
        with pytest.raises(ConfigurationError, match=r"Order.* can't be resolved"):
            check_tasks([made["work"]])


def write_module(folder: Path) -> Path:
    """A module whose annotations refer to what only type checkers import."""
    module = folder / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "from graphile_worker_py import task\n"
        "if TYPE_CHECKING:\n"
        "    from graphile_worker_py import JobContext\n"
        "    from orders import Order\n"
        "@task\n"
        "async def work(payload: Order, ctx: JobContext) -> None: ...\n"
    )
    return module


def test_quoted_annotations_that_only_type_checkers_import_are_refused_by_a_worker(
    tmp_path: Path,
) -> None:
    module = write_module(tmp_path)
    module.write_text(f"from __future__ import annotations\n{module.read_text()}")
    made = runpy.run_path(str(module))
    assert made["work"].arguments == 2
    with pytest.raises(ConfigurationError, match="'Order' of the payload of task 'work' can't be"):
        check_tasks([made["work"]])


@pytest.mark.parametrize(
    "identifier", ["", " ", " a", "a\n", "\u00a0a", "x" * 129, "a\0b", "\ud800", 7]
)
def test_an_identifier_that_cannot_be_stored_is_refused(identifier: Any) -> None:
    with pytest.raises(ConfigurationError, match="task identifier"):
        Task(print, identifier)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "5", True])
def test_a_timeout_that_makes_no_sense_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout of task 'mine'"):
        Task(print, "mine", timeout=timeout)


def test_a_function_without_a_name_needs_an_identifier() -> None:
    with pytest.raises(ConfigurationError, match="has no name"):
        task(lambda payload: None)
    with pytest.raises(ConfigurationError, match="has no name"):
        task()(functools.partial(print))
    assert task("given")(lambda payload: None).identifier == "given"


@pytest.mark.parametrize("identifier", ["x" * 128, "with spaces", "\N{SNOWMAN}", "a/b:c"])
def test_any_identifier_that_can_be_stored_will_do(identifier: str) -> None:
    assert Task(print, identifier).identifier == identifier


def test_lists_and_mappings_are_taken() -> None:
    assert list(task_list([bare, named])) == ["bare", "other/name"]
    assert list(task_list(iter([bare]))) == ["bare"]
    given: dict[str, Any] = {"a": print, "b": named}
    found = task_list(given)
    assert list(found) == ["a", "b"]
    # A task keeps its settings, whatever name it goes by.
    assert (found["b"].identifier, found["b"].timeout) == ("b", 1.5)
    assert named.identifier == "other/name"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "no tasks"),
        ({}, "no tasks"),
        ([bare, bare], "two tasks are named 'bare'"),
        ([print], "is not a task: decorate it"),
        ("tasks", "must be a list"),
        (bare, "must be a list"),
        (7, "must be a list"),
        ({"a": 7}, "must be callable"),
        ({7: print}, "task identifier must be a string"),
    ],
)
def test_what_is_no_list_of_tasks_is_refused(tasks: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        task_list(tasks)


async def test_callables_of_all_kinds_run(dsn: str) -> None:
    jobs = Jobs(dsn)
    seen: list[Any] = []

    class Collector:
        async def __call__(self, payload: Any) -> None:
            seen.append(("object", payload))

        def method(self, payload: Any, ctx: Any) -> None:
            seen.append(("method", payload))

        @classmethod
        async def of_class(cls, payload: Any) -> None:
            seen.append(("classmethod", payload))

    async def function(prefix: str, payload: Any) -> None:
        seen.append((prefix, payload))

    def returns_awaitable(payload: Any) -> Any:
        return function("returned", payload)

    tasks: dict[str, Any] = {
        "object": Collector(),
        "method": Collector().method,
        "classmethod": Collector.of_class,
        "partial": functools.partial(function, "partial"),
        "returned": returns_awaitable,
    }
    for name in tasks:
        jobs.add(name, 1)
    await run_once(dsn, tasks=tasks)
    assert sorted(seen) == sorted((name, 1) for name in tasks)
    assert jobs.ids() == []
