"""The tasks that code gives to a runner: a list or mapping, modules, or a directory."""

import logging
from types import ModuleType
from typing import Any

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.loading.directory import load_tasks
from graphile_worker_py.loading.modules import collect_tasks
from graphile_worker_py.options.limits import check_agreement, check_breakers
from graphile_worker_py.tasks.task import Task, check_tasks, task_list


def given_tasks(given: dict[str, Any], logger: logging.Logger) -> dict[str, Task[Any]]:
    if "tasks" in given and "task_directory" in given:
        raise ConfigurationError("tasks and task_directory were both given; give one of them")
    if "task_directory" in given:
        tasks = load_tasks(given["task_directory"], logger=logger)
    elif "tasks" in given:
        tasks = collected_tasks(given["tasks"])
    else:
        raise ConfigurationError("neither tasks nor task_directory was given")
    check_tasks(tasks.values())
    check_agreement((name, task.settings.get("limits", ())) for name, task in tasks.items())
    check_breakers((name, task.settings.get("breaker")) for name, task in tasks.items())
    return tasks


def collected_tasks(given: object) -> dict[str, Task[Any]]:
    """Tasks by identifier, as code gives them: a list or mapping, or modules that have them.

    Raises:
        ConfigurationError: There are none, or a module can't be imported.
    """
    if isinstance(given, str | ModuleType):
        given = [given]
    if isinstance(given, list | tuple) and any(isinstance(x, str | ModuleType) for x in given):
        return collect_tasks(given)
    return task_list(given)  # type: ignore[arg-type]  # it checks  # pyright: ignore[reportArgumentType]
