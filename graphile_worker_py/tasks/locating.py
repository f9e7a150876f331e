"""Where another process finds the function of a task: a module, and a name in it."""

import inspect
import operator
import sys
from typing import Any

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.importing import private_directory


class TaskPlace(Record):
    """Where another process finds the function of a task.

    Attributes:
        module: Name of its module.
        name: Its name in there, with dots for what is in a class.
        identifier: The identifier of the task.
        directory: The task directory, for a module of one that is not a package of Python.
        file: The file of such a module.
    """

    module: str
    name: str
    identifier: str
    directory: str | None = None
    file: str | None = None


def check_has_place(function: Any, identifier: str) -> None:
    """Refuse what another process could not find: closures, lambdas, objects.

    Raises:
        ConfigurationError: The function is one of these.
    """
    name = getattr(function, "__qualname__", None)
    if not inspect.isroutine(function) or not isinstance(name, str) or "<" in name:
        raise ConfigurationError(
            f"task {identifier!r} can't run in a process, which imports its function by name: "
            f"{function!r} is not a function of a module"
        )


def place_of(function: Any, identifier: str) -> TaskPlace:
    """Where the function of a task is found, once its module is imported.

    Raises:
        ConfigurationError: It would not be found.
    """
    module, name = function.__module__, function.__qualname__
    why = f"task {identifier!r} can't run in a process, which imports {module}.{name}"
    if module == "__main__":
        raise ConfigurationError(
            f"{why}: the program that runs can't be imported; put the task into another module"
        )
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError) as error:
        raise ConfigurationError(f"{why}: there is no such function") from error
    # A decorated function is found as its task.
    if function not in (found, getattr(found, "function", None)):
        raise ConfigurationError(f"{why}: there it would find {found!r}")
    file = getattr(sys.modules[module], "__file__", None)
    directory = private_directory(module)
    if directory is None or file is None:
        return TaskPlace(module=module, name=name, identifier=identifier)
    return TaskPlace(
        module=module, name=name, identifier=identifier, directory=directory, file=file
    )
