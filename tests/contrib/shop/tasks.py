"""Tasks of the app: some of Django's kind, some of ours."""

import threading
from importlib import import_module
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from graphile_worker_py import task as our_task
from graphile_worker_py.contrib.django import api

# The types of the backport are not those of Django, which has none.
task: Any = import_module("django_tasks" if api.IS_BACKPORT else "django.tasks").task

seen: list[Any] = []


def session() -> int:
    """Id of the server's process that serves Django's connection of this thread."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_backend_pid()")
        return int(cursor.fetchone()[0])


@task
def double(number: int, *, plus: int = 0) -> dict[str, int]:
    """Return a result."""
    return {"doubled": 2 * number + plus}


@task(takes_context=True, priority=7, queue_name="ledger")
def attempt(context: Any) -> int:
    """Return the number of the attempt."""
    return int(context.attempt)


@task
def fail(text: str) -> None:
    """Fail."""
    raise ValueError(text)


@task
async def double_later(number: int) -> list[Any]:
    """Use the database from an async task, in a thread of its own."""
    sensitive = await sync_to_async(threading.get_ident)()
    used = await sync_to_async(session)()
    return [2 * number, sensitive, used]


@our_task
def sessions(_payload: Any) -> None:
    """Note which session of the database was used, in which thread."""
    seen.append((threading.get_ident(), session()))


@our_task
def hang_up(_payload: Any) -> None:
    """Close the connection, as the end of a process does."""
    connection.close()
