"""The options of a worker process that are not options of its pool."""

from functools import partial
from typing import Final

from graphile_worker_py.checks import (
    check_filled,
    check_filled_or_list,
    check_one_of,
    check_path,
    check_port,
    check_processes,
    check_seconds,
    check_share,
    check_table,
    check_texts,
    check_whole,
)
from graphile_worker_py.options.declaring import Kind, Option
from graphile_worker_py.options.pool_flags import METAVAR, pools_of_flags

_LOG_FORMATS: Final = ("text", "json")
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")

PROCESS_OPTIONS: Final = (
    Option(
        name="connection",
        kind=Kind.TEXT,
        check=check_filled,
        doc="Connection string of the database. libpq's `PG*` variables supply what it leaves out.",
        flags=("-c", "--connection"),
        metavar="DSN",
        env="DATABASE_URL",
    ),
    Option(
        name="tasks",
        kind=Kind.TEXT,
        check=check_filled_or_list,
        doc="Python module that contains the tasks, as `MODULE` or `MODULE:ATTRIBUTE`. Several are "
        "given as a list, or with commas between them; `saas.*.tasks` stands for all that it "
        "matches.",
        flags=("--tasks",),
        is_repeatable=True,
        metavar="MODULE[:ATTR]",
        in_code=True,
    ),
    Option(
        name="task_directory",
        kind=Kind.PATH,
        check=check_path,
        doc="Folder or Python file that contains the tasks, used instead of `tasks`. Default: "
        "`./tasks`, if it exists.",
        flags=("--task-directory",),
        metavar="DIR",
        in_code=True,
    ),
    Option(
        name="setup",
        kind=Kind.TEXT,
        check=check_filled,
        doc="Function that each process calls before it imports tasks, as `MODULE:FUNCTION`.",
        flags=("--setup",),
        metavar="MODULE:FUNCTION",
        in_code=True,
    ),
    Option(
        name="lifespan",
        kind=Kind.TEXT,
        check=check_filled,
        doc="Async context manager that is entered before the first job and left after the last "
        "one, as `MODULE:FUNCTION`. It yields the objects that tasks share.",
        flags=("--lifespan",),
        metavar="MODULE:FUNCTION",
        in_code=True,
    ),
    Option(
        name="crontab_file",
        kind=Kind.PATH,
        check=check_path,
        doc="File with recurring jobs. Default: `./crontab`, if it exists.",
        flags=("--crontab",),
        metavar="FILE",
        in_code=True,
    ),
    Option(
        name="hooks",
        kind=Kind.TEXTS,
        check=check_texts,
        doc="Plugins, the outermost first: each the name of an installed entry point, or "
        "`MODULE:ATTRIBUTE`.",
        flags=("--hook",),
        metavar="PLUGIN",
        in_code=True,
    ),
    Option(
        name="pools",
        kind=Kind.TABLE,
        check=check_table,
        doc="Several worker pools in each process, each with a name, a number of jobs that it runs "
        "at once, and tasks: a table in files, JSON in the environment, a `Pool` for each name in "
        "code. The page about limits explains them.",
        flags=("--pool",),
        metavar=METAVAR,
        is_repeatable=True,
        of_flags=pools_of_flags,
        in_code=True,
    ),
    Option(
        name="shedding.loop_lag",
        kind=Kind.SECONDS,
        check=partial(check_seconds, above_zero=True),
        doc="Lateness of the event loop above which the worker fetches no jobs. Default: no bound.",
    ),
    Option(
        name="shedding.memory",
        kind=Kind.NUMBER,
        check=check_share,
        doc="Share of the memory of the container, or of the machine, above which the worker "
        "fetches no jobs; above 0 and at most 1. Default: no bound.",
    ),
    Option(
        name="shedding.unrecorded",
        kind=Kind.WHOLE,
        check=partial(check_whole, smallest=1),
        doc="Number of jobs that have ended and whose outcome is not recorded, above which the "
        "worker fetches no jobs. Default: no bound.",
    ),
    Option(
        name="processes",
        kind=Kind.WHOLE,
        default=1,
        check=check_processes,
        doc="Number of worker processes, each with all of these options, at most 1,000. More than "
        "one process is supervised; `auto` starts one for each processor core.",
        flags=("-P", "--processes"),
    ),
    Option(
        name="health_port",
        kind=Kind.WHOLE,
        check=check_port,
        doc="Port that answers health probes over HTTP. With several processes, each uses the next "
        "port. Default: no probes.",
        flags=("--health-port",),
        in_code=True,
    ),
    Option(
        name="health_host",
        kind=Kind.TEXT,
        default="127.0.0.1",
        check=check_filled,
        doc="Address that answers health probes; `0.0.0.0` accepts them from other machines.",
        flags=("--health-host",),
        metavar="ADDRESS",
        in_code=True,
    ),
    Option(
        name="log_format",
        kind=Kind.TEXT,
        default=_LOG_FORMATS[0],
        check=partial(check_one_of, allowed=_LOG_FORMATS),
        doc="`text` logs lines for people, `json` logs objects for programs.",
        flags=("--log-format",),
        choices=_LOG_FORMATS,
    ),
    Option(
        name="log_level",
        kind=Kind.TEXT,
        default="info",
        check=partial(check_one_of, allowed=_LOG_LEVELS),
        doc="Lowest level that is logged: `debug`, `info`, `warning` or `error`.",
        flags=("--log-level",),
        choices=_LOG_LEVELS,
    ),
)
"""Options of a worker process that are not options of its pool."""
