"""Tasks from Python modules."""

import fnmatch
import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.loading.watching import reloaded
from graphile_worker_py.tasks.importing import forget_module, import_fault, import_named
from graphile_worker_py.tasks.task import Task, Tasks, task_list

MOST_MODULES: Final = 10
"""Maximum number of modules that an error names."""


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
    module = import_named(module_name, what=f"{name} {where}", hint=hint)
    if not attribute:
        return tasks_of(module, name=f"{name} {where}")
    try:
        tasks: Any = getattr(module, attribute)
    except AttributeError as error:
        raise ConfigurationError(
            f"{name} {where}: module {module_name!r} has no attribute {attribute!r}"
        ) from error
    return [tasks] if isinstance(tasks, Task) else tasks


def is_module(name: str) -> bool:
    """Whether a text is the name of a module that can be found."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (Exception, SystemExit):  # a parent can't be imported
        return False


def tasks_of(module: ModuleType, *, name: str) -> list[Task[Any]]:
    """The tasks that a module has.

    Args:
        module: The module.
        name: Names the setting in errors.

    Raises:
        ConfigurationError: It has none; the message names the modules of a package.
    """
    found = {id(value): value for value in vars(module).values() if isinstance(value, Task)}
    if found:
        return list(found.values())
    names = [
        f"{module.__name__}.{each.name}"
        for each in pkgutil.iter_modules(getattr(module, "__path__", ()))
    ]
    hint = f"; give modules of it, which are {_listed(names)}"
    raise ConfigurationError(f"{name}: the module has no @task functions{hint if names else ''}")


def collect_tasks(
    sources: Iterable[str | ModuleType], *, name: str = "tasks"
) -> dict[str, Task[Any]]:
    """The tasks of several modules by their identifiers.

    A task that several modules have, because one imports it from another, counts once.

    Raises:
        ConfigurationError: A module can't be imported or has no tasks, or two tasks have the same
            identifier.
    """
    found: dict[str, Task[Any]] = {}
    for source in sources:
        if isinstance(source, str):
            tasks = (
                _tasks_of_all(source, name) if "*" in source else import_tasks(source, name=name)
            )
        else:
            tasks = tasks_of(source, name=f"{name} {source.__name__}")
        for identifier, task in task_list(tasks).items():
            known = found.setdefault(identifier, task)
            if known.function is not task.function:
                raise ConfigurationError(f"{name}: two tasks are named {identifier!r}")
    return found


def _tasks_of_all(pattern: str, name: str) -> list[Task[Any]]:
    """The tasks of all modules that a pattern such as `saas.*.tasks` stands for."""
    where, _, attribute = pattern.partition(":")
    modules = modules_like(where, name=f"{name} {pattern}")
    if attribute:
        by_name = collect_tasks([f"{module}:{attribute}" for module in modules], name=name)
        return list(by_name.values())
    found: dict[int, Task[Any]] = {}
    for module in modules:
        values = vars(_imported(module, name=f"{name} {module}")).values()
        found.update({id(value): value for value in values if isinstance(value, Task)})
    if not found:
        raise ConfigurationError(
            f"{name} {pattern}: none of these modules has @task functions: {_listed(modules)}"
        )
    return list(found.values())


def modules_like(pattern: str, *, name: str) -> list[str]:
    """The modules that a pattern stands for; `*` stands for any text without a dot.

    Args:
        pattern: Such as `saas.*.tasks`.
        name: Names the setting in errors.

    Raises:
        ConfigurationError: There are none, or a package on the way can't be imported.
    """
    first, *parts = pattern.split(".")
    if (
        "*" in first
        or "**" in pattern
        or not all(part.replace("*", "x").isidentifier() for part in (first, *parts))
    ):
        raise ConfigurationError(
            f"{name}: a pattern begins with the name of a package, and has * for other names, as "
            f"in saas.*.tasks"
        )
    found = [first]
    for part in parts:
        found = [
            f"{package}.{child}" for package in found for child in _children(package, part, name)
        ]
    if not found:
        raise ConfigurationError(f"{name}: there are no such modules")
    return found


def _children(package: str, part: str, name: str) -> list[str]:
    """The names below a package that a part of a pattern stands for."""
    if "*" not in part:
        return [part] if _spec_of(f"{package}.{part}", name) is not None else []
    spec = _spec_of(package, name)
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    names = {each.name for each in pkgutil.iter_modules(places)}
    for place in places:
        # Folders without an `__init__.py` are packages, too.
        with suppress(OSError):
            names |= {each.name for each in Path(place).iterdir() if each.is_dir()}
    return sorted(
        each
        for each in fnmatch.filter(names, part)
        if each.isidentifier() and not each.startswith("__")
    )


def _spec_of(module: str, name: str) -> ModuleSpec | None:
    """Where a module is; None if there is none."""
    try:
        return importlib.util.find_spec(module)
    except (Exception, SystemExit) as error:  # of a package on the way
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return None
        raise ConfigurationError(f"{name}: {import_fault(error)}") from error


def _imported(module: str, *, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{name}: {import_fault(error)}") from error


def _listed(modules: Sequence[str]) -> str:
    more = ", …" if len(modules) > MOST_MODULES else ""
    return f"{', '.join(modules[:MOST_MODULES])}{more}"


async def watch_modules(
    sources: Sequence[str], *, name: str, logger: logging.Logger, interval: float = 0.5
) -> AsyncGenerator[dict[str, Task[Any]], None]:
    """Import tasks now, and again whenever a file of their packages has changed. For development.

    Args:
        sources: As for `collect_tasks`.
        name: Names the setting in errors.
        logger: Logs reloads, and tasks that do not load.
        interval: Seconds between two looks at the files.

    Raises:
        ConfigurationError: The tasks can't be loaded at the start.
    """
    modules = [_watched(source.partition(":")[0]) for source in sources]

    def load(*, strict: bool) -> dict[str, Task[Any]]:  # noqa: ARG001  # it is always strict
        return collect_tasks(sources, name=name)

    def forget() -> None:
        for module in modules:
            forget_module(module)

    versions = reloaded(
        load,
        lambda: [place for module in modules for place in _places_of(module)],
        forget=forget,
        source=", ".join(sources),
        log=logger,
        interval=interval,
    )
    try:
        async for tasks in versions:
            yield tasks
    finally:
        await versions.aclose()


def _watched(module: str) -> str:
    """The module whose files are watched: of a pattern, the package that it begins with."""
    return module.partition("*")[0].rpartition(".")[0] if "*" in module else module


def _places_of(module: str) -> list[Path]:
    """The directory of the package that a module is or belongs to; of another module, its file."""
    try:
        spec = importlib.util.find_spec(module.rpartition(".")[0] or module)
    except (Exception, SystemExit):  # its parent can't be imported; the load says why
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    return [] if spec.origin is None else [Path(spec.origin)]
