"""Tasks from a Python module."""

import importlib
from pathlib import Path
from typing import Any

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.tasks.importing import import_fault
from graphile_worker_py.tasks.task import Task, Tasks


def import_tasks(where: str, *, name: str = "tasks") -> Tasks:
    """Import the tasks of a module: all that it has, or those of one of its attributes.

    Args:
        where: `module`, or `module:attribute`. The attribute is a list, a mapping, or a task.
        name: Names the setting in errors.

    Raises:
        ConfigurationError: There is no such module or attribute, or it holds no tasks.
    """
    module_name, _, attribute = where.partition(":")
    hint = "; a file or folder is given by --task-directory" if Path(where).exists() else ""
    if not all(module_name.split(".")):
        raise ConfigurationError(
            f"{name} {where}: {module_name!r} is not the name of a module; expected is "
            f"MODULE[:ATTR], as in myapp.tasks{hint}"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        fault = import_fault(error)
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            fault = f"there is no module {error.name!r}{hint}"
        raise ConfigurationError(f"{name} {where}: {fault}") from error
    if not attribute:
        found = {id(value): value for value in vars(module).values() if isinstance(value, Task)}
        if not found:
            raise ConfigurationError(f"{name} {where}: the module has no @task functions")
        return list(found.values())
    try:
        tasks: Any = getattr(module, attribute)
    except AttributeError as error:
        raise ConfigurationError(
            f"{name} {where}: module {module_name!r} has no attribute {attribute!r}"
        ) from error
    return [tasks] if isinstance(tasks, Task) else tasks
