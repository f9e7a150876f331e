"""Decide which source sets an option.

The order of precedence is: code or a flag, then the environment, then a file, then the default.
The command line reads all of them. Code (`run`, `Runner`, `WorkerUtils`) reads no file, and of the
environment only what Graphile Worker reads, too: connection, schema and whether to log successes.
"""

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from graphile_worker_py.checks import check_schema
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options import (
    DEFAULT_SCHEMA,
    OPTIONS,
    WORKER_OPTION_NAMES,
    LocalQueueOptions,
    RefetchDelay,
    WorkerOptions,
)
from graphile_worker_py.options.declaring import VARIABLE_PREFIX, Kind
from graphile_worker_py.options.history import HistoryRetention, retention
from graphile_worker_py.options.shedding import Shedding
from graphile_worker_py.options.texts import check_yes_no, typed
from graphile_worker_py.records import Record

P = TypeVar("P")

CONNECTIONS: Final = ("connection", "listen_connection_string")
"""The options that hold a connection string."""
CONFIG_FILE: Final = "graphile_worker.toml"
PROJECT_FILE: Final = "pyproject.toml"
PROJECT_TABLE: Final = "graphile-worker"
"""The table below `tool` in `pyproject.toml`."""

_DEBUG_VARIABLES: Final = ("GRAPHILE_LOGGER_DEBUG", "GRAPHILE_WORKER_DEBUG")
"""Each of them sets the log level to debug, as in Graphile Worker."""
_MISSPELT_TABLES: Final = (PROJECT_TABLE, PROJECT_TABLE.replace("-", ""))
_LOCAL_QUEUE: Final = "local_queue."
_REFETCH_DELAY: Final = "local_queue.refetch_delay."
_RETENTION: Final = "history_retention."
_EITHER_OR: Final = ("tasks", "task_directory")


def worker_options(given: Mapping[str, Any]) -> WorkerOptions:
    """Build the checked options of a worker pool; None means not given.

    Raises:
        ConfigurationError: A value is not allowed.
    """
    values = {name: value for name, value in given.items() if value is not None}
    values["schema"] = schema_name(given.get("schema"))
    if "history_retention" in values:
        values["history_retention"] = retention(values["history_retention"])
    return WorkerOptions(**values)


def schema_name(given: str | None) -> str:
    """The schema: the given one, else `GRAPHILE_WORKER_SCHEMA`, else `graphile_worker`.

    Raises:
        ConfigurationError: The name is not one that PostgreSQL can hold.
    """
    if given is None:
        # An empty variable counts as unset, as it does for libpq.
        given = os.environ.get(OPTIONS["schema"].variable) or DEFAULT_SCHEMA
    return check_schema(given)


def conninfo(given: str | None) -> str:
    """The connection string: the given one, else `DATABASE_URL`, else an empty one.

    With an empty string libpq reads its own variables (`PGHOST`, `PGDATABASE`, `PGSERVICE`, …).
    """
    if given is not None:
        return given
    return os.environ.get(OPTIONS["connection"].variable, "")


def source(given: str | P | None, pool: type[Any]) -> str | P:
    """Check the source of connections; None becomes a connection string.

    Raises:
        ConfigurationError: The source is neither a string nor a pool of that kind.
    """
    if given is None or isinstance(given, str):
        return conninfo(given)
    if not isinstance(given, pool):
        # The text of other objects may contain a password.
        shown = repr(given) if isinstance(given, int | float) else _a(type(given).__name__)
        raise ConfigurationError(
            f"source must be a connection string, {_a(pool.__name__)} or None, not {shown}"
        )
    return cast(P, given)


def unknown_option(name: str, known: Iterable[str]) -> ConfigurationError:
    """The error for an unknown option; it suggests the option that was probably meant."""
    return ConfigurationError(f"unknown option {name!r}{_suggestion(name, known, 'options')}")


def logs_success() -> bool:
    """Whether to log successes: not if `NO_LOG_SUCCESS` is set."""
    return not os.environ.get("NO_LOG_SUCCESS")


class Origin(StrEnum):
    """The source of a value; later ones win."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


class Setting(Record):
    """The value of an option, and its source.

    Attributes:
        value: The value; None if the option is not set.
        origin: The kind of source that set it.
        place: The file or the environment variable; empty for flags and defaults.
    """

    value: Any
    origin: Origin = Origin.DEFAULT
    place: str = ""


def read_settings(
    flags: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Setting]:
    """The value of every option, for a command.

    Args:
        flags: Values from the command line by the names of options, as text or converted; None
            means not given.
        file: Configuration file. None means `graphile_worker.toml`, else the table
            `[tool.graphile-worker]` of `pyproject.toml`, in the directory, if there is one.
        directory: The folder of these files; None means the working directory.
        environment: The variables; None means those of the process.

    Raises:
        ConfigurationError: A value is not allowed, or a key in a file is unknown.
    """
    where = Path() if directory is None else directory
    variables = os.environ if environment is None else environment
    found: dict[str, Setting] = {}
    given = {name: value for name, value in flags.items() if value is not None}
    _add(found, {name: typed(OPTIONS[name], given[name]) for name in given}, Origin.FLAG, {})
    names = {name: each.variable for name, each in OPTIONS.items() if variables.get(each.variable)}
    values = {name: typed(OPTIONS[name], variables[names[name]]) for name in names}
    debugging = [variable for variable in _DEBUG_VARIABLES if variables.get(variable)]
    if debugging and "log_level" not in names:
        names["log_level"], values["log_level"] = debugging[0], "debug"
    _add(found, values, Origin.ENVIRONMENT, names)
    path = _file_in(where) if file is None else Path(file)
    if path is not None:
        in_file = dict(_read_file(path, variables, skip=found))
        _add(found, in_file, Origin.FILE, dict.fromkeys(in_file, str(path)))
    defaults = _defaults(where, has_tasks=any(name in found for name in _EITHER_OR))
    return {name: found.get(name, Setting(value=defaults[name])) for name in OPTIONS}


def runner_values(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The settings that a runner takes, without those that are the runner's defaults.

    Raises:
        ConfigurationError: Values do not fit together.
    """
    found = {
        name: setting.value
        for name, setting in settings.items()
        if setting.origin is not Origin.DEFAULT or setting.value != OPTIONS[name].default
    }
    values = {name: value for name, value in found.items() if OPTIONS[name].in_code}
    delay = _below(_REFETCH_DELAY, found)
    queue = _below(_LOCAL_QUEUE, found)
    if delay:
        if "duration" not in delay:
            raise ConfigurationError(
                f"{_REFETCH_DELAY}duration must be given where {_REFETCH_DELAY}{min(delay)} is"
            )
        queue["refetch_delay"] = RefetchDelay(**delay)
    kept = _below(_RETENTION, found)
    if kept:
        values["history_retention"] = HistoryRetention(**kept)
    if shedding := _below("shedding.", found):
        values["shedding"] = Shedding(**shedding)
    if queue:
        values["local_queue"] = LocalQueueOptions(**queue)
    worker_options({name: values[name] for name in values if name in WORKER_OPTION_NAMES})
    return values


def misspelt_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables that look like an option's, with the variable probably meant.

    Other variables with our prefix are no mistake: executables are started with some of them.
    """
    variables = os.environ if environment is None else environment
    known = [each.variable for each in OPTIONS.values()]
    unknown = [name for name in variables if name.startswith(VARIABLE_PREFIX) and name not in known]
    if not unknown:
        return {}
    import difflib  # noqa: PLC0415  # most runs make no mistake

    close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.9) for name in unknown}
    return {name: matches[0] for name, matches in close.items() if matches}


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values directly below a prefix, without it."""
    found = {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if "." not in name}


def _defaults(directory: Path, *, has_tasks: bool) -> dict[str, Any]:
    """The default of each option; two of them depend on the files in the directory."""
    defaults = {name: option.default for name, option in OPTIONS.items()}
    if not has_tasks and (directory / "tasks").is_dir():
        defaults["task_directory"] = "tasks"
    if (directory / "crontab").is_file():
        defaults["crontab_file"] = "crontab"
    return defaults


def _add(
    found: dict[str, Setting],
    values: Mapping[str, Any],
    origin: Origin,
    places: Mapping[str, str],
) -> None:
    """Check the values of a source, and add those that no stronger source has set."""
    if all(name in values for name in _EITHER_OR):
        place = places.get(_EITHER_OR[0])
        raise ConfigurationError(
            f"{f'{place}: ' if place else ''}{' and '.join(_EITHER_OR)} exclude each other"
        )
    # Both say where the tasks are, so the stronger source decides for both of them.
    has_tasks = any(name in found for name in _EITHER_OR)
    for name, value in values.items():
        place = places.get(name, "")
        try:
            _check(name, value, origin)
        except ConfigurationError as error:
            raise ConfigurationError(f"{place}: {error}" if place else str(error)) from error
        if name not in found and not (has_tasks and name in _EITHER_OR):
            found[name] = Setting(value=value, origin=origin, place=place)


def _check(name: str, value: Any, origin: Origin) -> None:
    if OPTIONS[name].kind is Kind.YES_NO:
        check_yes_no(name, value, in_file=origin is Origin.FILE)
    OPTIONS[name].check(name, value)
    if name == "pools":
        from graphile_worker_py.options.pools import pools_of  # noqa: PLC0415  # rarely given

        pools_of(value)


def _file_in(directory: Path) -> Path | None:
    own = directory / CONFIG_FILE
    if own.is_file():
        return own
    project = directory / PROJECT_FILE
    if project.is_file() and _project_table(_parsed(project), project) is not None:
        return project
    return None


def _project_table(document: Mapping[str, Any], path: Path) -> Any:
    """Our table in `pyproject.toml`; None if there is none.

    Raises:
        ConfigurationError: The name of a table looks like a misspelling of ours.
    """
    tools = document.get("tool")
    if not isinstance(tools, dict):
        return None
    if PROJECT_TABLE not in tools:
        for name in tools:
            if name.lower().replace("_", "-").removesuffix("-py") in _MISSPELT_TABLES:
                raise ConfigurationError(
                    f"{path}: [tool.{name}] is not read; did you mean [tool.{PROJECT_TABLE}]?"
                )
    return tools.get(PROJECT_TABLE)


def _parsed(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  # often there is no file

    try:
        # Editors on Windows start a file with a byte order mark, which tomllib takes for a key.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is nested too deeply to be read") from error


def _read_file(
    path: Path, variables: Mapping[str, str], *, skip: Container[str]
) -> Iterator[tuple[str, Any]]:
    """The options in a file, by name.

    Args:
        path: The file.
        variables: The environment, for `connection = {env = "NAME"}`.
        skip: Options that a stronger source sets; the variables of their connections may be unset.
    """
    document = _parsed(path)
    if path.name == PROJECT_FILE:
        document = _project_table(document, path)
        if not isinstance(document, dict):
            raise ConfigurationError(f"{path} has no table [tool.{PROJECT_TABLE}]")
    for name, value in _flat(document, "", path):
        if name in CONNECTIONS and isinstance(value, dict):
            variable = _variable_in(name, value, path)
            if name not in skip:
                yield name, _connection_from(name, variable, variables, path)
        elif OPTIONS[name].kind is Kind.PATH and isinstance(value, str):
            # Relative to the file, whatever the working directory of the worker is.
            yield name, str(path.parent / value) if value else value
        else:
            yield name, value


def _flat(table: Mapping[str, Any], prefix: str, path: Path) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        if name in OPTIONS:
            yield name, value
        elif any(option.startswith(f"{name}.") for option in OPTIONS):
            if not isinstance(value, dict):
                raise ConfigurationError(f"{path}: {name} must be a table, not {value!r}")
            yield from _flat(value, f"{name}.", path)
        else:
            raise ConfigurationError(
                f"{path}: unknown key {name!r}{_suggestion(name, OPTIONS, 'keys')}"
            )


def _suggestion(name: str, known: Iterable[str], what: str) -> str:
    import difflib  # noqa: PLC0415  # most runs make no mistake

    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not close:
        # The key may be in the wrong table.
        close = [option for option in names if option.rpartition(".")[2] == name]
    return f"; did you mean {close[0]!r}?" if close else f"; {what} are {', '.join(names)}"


def _variable_in(name: str, value: dict[str, Any], path: Path) -> str:
    variable = value.get("env")
    if not isinstance(variable, str) or not variable or len(value) != 1:
        raise ConfigurationError(
            # Its values may contain a password.
            f'{path}: {name} must be a string or {{env = "VARIABLE"}}, not a table with '
            f"{', '.join(value) or 'nothing in it'}"
        )
    return variable


def _connection_from(name: str, variable: str, variables: Mapping[str, str], path: Path) -> str:
    if not variables.get(variable):
        raise ConfigurationError(
            f"{path}: {name} is to be read from the environment variable {variable}, "
            f"which is not set"
        )
    return variables[variable]
