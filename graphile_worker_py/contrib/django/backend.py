"""A backend for Django's tasks: `TASKS = {"default": {"BACKEND": "….GraphileWorkerBackend"}}`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from graphile_worker_py.checks import MAX_IDENTIFIER_LENGTH, check_smallint, check_texts
from graphile_worker_py.contrib.django import api, results
from graphile_worker_py.contrib.django.connecting import DjangoUtils
from graphile_worker_py.errors import ConfigurationError

APP: Final = "graphile_worker_py.contrib.django"
OPTIONS: Final = ("max_attempts", "serial_queues")
QUEUE_FLAG: Final = "queue:"
"""Beginning of the flag with a job's queue: workers can leave jobs out by their flags."""


class GraphileWorkerBackend(api.BaseTaskBackend):  # type: ignore[misc]  # Django has no types
    """Tasks of Django as jobs: deferred, async, with priorities and results.

    A task is added on Django's own connection, so it belongs to `transaction.atomic()`. Its
    identifier is the path of its function. Its priority is turned, because a larger one runs first
    in Django. `OPTIONS`:

    - `max_attempts`: how often a task is tried, at least 1; by default 25 times.
    - `serial_queues`: names of queues of which one task runs at a time.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, dict(params))
        unknown = sorted(set(self.options) - set(OPTIONS))
        if unknown:
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}]['OPTIONS'] has no {unknown[0]!r}; it may have "
                f"{', '.join(OPTIONS)}"
            )
        self._max_attempts = self.options.get("max_attempts")
        serial = self.options.get("serial_queues", ())
        try:
            if self._max_attempts is not None:
                check_smallint("max_attempts", self._max_attempts, smallest=1)
            check_texts("serial_queues", serial)
        except ConfigurationError as error:
            raise ImproperlyConfigured(f"TASKS[{alias!r}]['OPTIONS']: {error}") from error
        self._serial = frozenset(serial)

    @cached_property
    def utils(self) -> DjangoUtils:
        """What adds and reads the jobs, on Django's connection."""
        return DjangoUtils()

    def validate_task(self, task: Any) -> None:
        """Check that the task can be run.

        Raises:
            InvalidTask: It can't.
        """
        super().validate_task(task)
        if len(task.module_path) > MAX_IDENTIFIER_LENGTH:
            raise api.InvalidTask(
                f"the path of a task may have {MAX_IDENTIFIER_LENGTH} characters, not "
                f"{len(task.module_path)}: {task.module_path}"
            )

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Add a job for a task, in the transaction of Django's connection.

        Raises:
            InvalidTask: The backend can't run the task.
            TypeError: An argument can't be written as JSON.
            django.db.Error: The database could not add it.
        """
        self.validate_task(task)
        payload = {
            "args": api.normalize_json(list(args)),
            "kwargs": api.normalize_json(dict(kwargs)),
            "backend": self.alias,
            "queue": task.queue_name,
            "deferred": task.run_after is not None,
        }
        job = self.utils.add_job(
            task.module_path,
            payload,
            priority=-task.priority,
            run_at=_aware(task.run_after),
            max_attempts=self._max_attempts,
            queue_name=task.queue_name if task.queue_name in self._serial else None,
            flags=[f"{QUEUE_FLAG}{task.queue_name}"] if self.queues != {"default"} else None,
        )
        result = results.added(task, job, payload)
        api.task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Read how far a task is, or how it has ended.

        What a completed task returned is known if its worker could keep it (see `keep_result`).

        Raises:
            TaskResultDoesNotExist: Nothing is known of such a task.
        """
        return results.read(self.utils, result_id, alias=self.alias)

    def check(self, **_kwargs: Any) -> Iterable[Any]:
        """Faults for `manage.py check`; the app checks the rest."""
        if apps.is_installed(APP):
            return []
        hint = f"Add {APP!r} to INSTALLED_APPS: it has the worker and the migrations."
        message = f"TASKS[{self.alias!r}] has a backend whose app is not installed"
        return [checks.Warning(message, hint=hint, id="graphile_worker_py.W001")]


def _aware(moment: datetime | None) -> datetime | None:
    return moment if moment is None or timezone.is_aware(moment) else timezone.make_aware(moment)
