"""The API of tasks: Django's own from version 6 on, before that the package `django-tasks`."""

from typing import Any, Final

import django

IS_BACKPORT: Final = django.VERSION < (6, 0)

# Both have the same classes, nearly all under the same names.
if not IS_BACKPORT:
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json


def task_backends() -> Any:
    """The backends of the project, by alias."""
    if not IS_BACKPORT:
        from django import tasks  # noqa: PLC0415  # as above
    else:
        import django_tasks as tasks  # noqa: PLC0415  # as above
    return tasks.task_backends


__all__ = [
    "IS_BACKPORT",
    "BaseTaskBackend",
    "InvalidTask",
    "Task",
    "TaskContext",
    "TaskError",
    "TaskResult",
    "TaskResultDoesNotExist",
    "TaskResultStatus",
    "normalize_json",
    "task_backends",
    "task_enqueued",
    "task_finished",
    "task_started",
]
