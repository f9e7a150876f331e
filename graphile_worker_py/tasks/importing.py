"""Import the Python files of a directory with any name, in any place.

The files are the modules of one package: they import each other, and their helpers, by relative
imports. A directory that is a package which Python finds by itself (it has an `__init__.py`) is
imported under its own name, as everywhere else in the program. Any other directory becomes a
private package with a unique name, and is imported anew by each load.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from graphile_worker_py.errors import ConfigurationError, message_of

_INIT = "__init__.py"
_PRIVATE = "graphile_worker_tasks_"
_LOADING = (
    "<frozen importlib",
    str(Path(importlib.__file__).parent),
    str(Path(__file__).parent.parent),
)
"""Prefixes of files that only import other files, and so are not at fault."""


def open_package(directory: Path) -> str:
    """Make a directory ready for the import of its files; the name of the package.

    Raises:
        Exception: Whatever its `__init__.py` raises.
    """
    importlib.invalidate_caches()
    name = _own_name(directory)
    if name is not None:
        return name
    name = f"{_PRIVATE}{hashlib.blake2b(os.fsencode(directory)).hexdigest()[:12]}"
    _forget(_modules_of(name))
    init = directory / _INIT
    if init.is_file():
        _execute(name, init, search_locations=[str(directory)])
    else:
        _make_package(name, directory)
    return name


def import_file(package: str, parts: Sequence[str], path: Path) -> ModuleType:
    """Import a file as a module of an open package.

    Args:
        package: The name that `open_package` gave.
        parts: Where in the package the file is: directories, and its name without `.py`.
        path: The file.

    Raises:
        BaseException: Whatever the file raises.
    """
    *parents, stem = parts
    within = package
    for depth, parent in enumerate(parents):
        within = f"{within}.{parent}"
        directory = path.parents[len(parents) - depth - 1]
        # The import system would prefer a file of the same name.
        if within not in sys.modules and not (directory / _INIT).is_file():
            _make_package(within, directory)
    importlib.import_module(within)
    if "." in stem or path.with_suffix("").is_dir():
        # It would read the dot as a level, or find the directory of the same name.
        return _execute(f"{within}.{stem.replace('.', '_')}_py", path, search_locations=None)
    return importlib.import_module(f"{within}.{stem}")


def forget(path: str | Path) -> None:
    """Have the modules of a directory, or a file, imported anew the next time.

    Those of a private package are always imported anew.
    """
    where = Path(path).absolute()
    directory = where if where.is_dir() else where.parent
    name = _own_name(directory)
    if name is not None:
        _forget(_modules_of(name) if directory == where else [f"{name}.{where.stem}"])


def forget_module(name: str) -> None:
    """Import a module again the next time, with the package that it is or belongs to."""
    importlib.invalidate_caches()
    _forget(_modules_of(name.rpartition(".")[0] or name))


def private_directory(module: str) -> str | None:
    """The directory whose private package a module belongs to; None if it belongs to none."""
    package = module.partition(".")[0]
    if not package.startswith(_PRIVATE):
        return None
    return str(sys.modules[package].__path__[0])


def line_of(path: Path, error: BaseException) -> int | None:
    """Line of a file at which an error was raised; None if it was raised elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return lines[-1] if lines else None


def import_named(name: str, *, what: str, hint: str = "") -> ModuleType:
    """Import a module that a user has named.

    Args:
        name: Name of the module.
        what: What the user gave, for errors.
        hint: What else the user may have meant, if there is no such module.

    Raises:
        ConfigurationError: It can't be imported.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        fault = import_fault(error)
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            fault = f"there is no module {error.name!r}{hint}"
        raise ConfigurationError(f"{what}: {fault}") from error


def import_fault(error: BaseException) -> str:
    """What went wrong while something was imported, and in which line of which file."""
    if isinstance(error, SyntaxError):
        # Its text names the file, too, but not the folder.
        place = f" ({error.filename}, line {error.lineno})" if error.filename else ""
        return f"{type(error).__name__}: {error.msg}{place}"
    said = message_of(error)
    if not said.startswith(type(error).__name__):
        said = f"{type(error).__name__}: {said}"
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_LOADING)
    ]
    return f"{said} ({frames[-1][0]}, line {frames[-1][1]})" if frames else said


def _own_name(directory: Path) -> str | None:
    """The name by which Python finds a directory as a package; None if it does not."""
    names: list[str] = []
    top = directory
    while (top / _INIT).is_file():
        names.insert(0, top.name)
        top = top.parent
    if not names:
        return None
    try:
        spec = importlib.util.find_spec(names[0])
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return ".".join(names) if (top / names[0] / _INIT).samefile(spec.origin) else None


def _make_package(name: str, directory: Path) -> None:
    """Let a directory without `__init__.py` be a package."""
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(directory)]
    sys.modules[name] = importlib.util.module_from_spec(spec)


def _execute(name: str, path: Path, *, search_locations: list[str] | None) -> ModuleType:
    """Import a file under a name of our choice."""
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=search_locations
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _modules_of(package: str) -> list[str]:
    return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]


def _forget(names: Sequence[str]) -> None:
    for name in names:
        spec = getattr(sys.modules.pop(name, None), "__spec__", None)
        # A compiled file counts as current if the source has the same size and was changed in the
        # same second, which is too coarse right after a change.
        if spec is not None and spec.cached is not None:
            with suppress(OSError):
                Path(spec.cached).unlink(missing_ok=True)
