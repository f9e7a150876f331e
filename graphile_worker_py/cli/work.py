"""What a process of the `run` command does: run jobs until it has to stop."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias, cast

from graphile_worker_py import aio, config
from graphile_worker_py.cli.ending import run_to_its_end
from graphile_worker_py.cli.exits import EXIT_FAILURE, EXIT_INCOMPATIBLE_WHILE_RUNNING, exit_with
from graphile_worker_py.errors import ConfigurationError, IncompatibleSchemaError, StoppedError
from graphile_worker_py.events import Events, ForcefulShutdown, GracefulShutdown, PoolCreate
from graphile_worker_py.loading.directory import watch_tasks
from graphile_worker_py.loading.modules import collect_tasks, watch_modules
from graphile_worker_py.once import run_once
from graphile_worker_py.processes.early import end_by
from graphile_worker_py.processes.supervised import Supervised
from graphile_worker_py.runner import Runner, run_migrations
from graphile_worker_py.runner_options import RunnerOptions
from graphile_worker_py.tasks.program import set_up
from graphile_worker_py.tasks.task import Task

logger = logging.getLogger("graphile_worker_py")

Settings: TypeAlias = Mapping[str, config.Setting]


def install(settings: Settings) -> None:
    """Install or upgrade the schema."""
    run_in_loop(run_migrations(settings["connection"].value, schema=settings["schema"].value))


def once(settings: Settings, process: Supervised | None) -> None:
    """Run the jobs that are due."""
    options = _telling(_runner_options(settings, process), process)
    crontab = options.pop("crontab_file", None)
    if settings["crontab_file"].origin is config.Origin.FLAG:
        raise ConfigurationError("--once adds no recurring jobs: leave out --crontab")
    if crontab is not None:
        from graphile_worker_py.cron import read_crontab  # few workers have a crontab

        read_crontab(crontab)  # its errors are reported now, and not when it is used
    _run(run_once(settings["connection"].value, **options), process)


def watching(settings: Settings, process: Supervised | None) -> None:
    """Run until stopped, and reload tasks that change."""
    options = _runner_options(settings, process)
    if settings["tasks"].value is None:
        versions = watch_tasks(settings["task_directory"].value, logger=logger)
    else:
        modules = named_modules(settings["tasks"].value)
        versions = watch_modules(modules, name="--tasks", logger=logger)
    _run(_run_watching(settings["connection"].value, options, versions, process), process)


def until_stopped(settings: Settings, process: Supervised | None) -> None:
    """Run until stopped."""
    options = _runner_options(settings, process)
    _run(_run_until_stopped(settings["connection"].value, options, process), process)


class _Reload:
    """Whether tasks have changed, and which signal arrived meanwhile."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.signal: str | None = None


def _run(work: Coroutine[Any, Any, object], process: Supervised | None) -> None:
    try:
        run_to_its_end(work if process is None else process.during(work), _loop_factory())
    except StoppedError as error:
        logger.info("%s", error)
        logging.shutdown()
        end_by(signal.Signals[error.signal])


def _runner_options(settings: Settings, process: Supervised | None) -> RunnerOptions:
    import_from_here()
    # Names and types were checked where the values were read.
    options = cast(RunnerOptions, config.runner_values(settings))
    if "setup" in options:
        options["setup"] = set_up(options["setup"])
    options["logger"] = logger
    options["watchdog_exit"] = True
    options["health_port"] = _own_port(settings["health_port"].value, process)
    if settings["tasks"].value is not None:
        options["tasks"] = collect_tasks(named_modules(settings["tasks"].value), name="--tasks")
    elif settings["task_directory"].value is None:
        raise ConfigurationError(
            "no tasks: give --tasks MODULE[:ATTR] or --task-directory DIR, or make a folder ./tasks"
        )
    return options


def _own_port(port: int | None, process: Supervised | None) -> int | None:
    # With port 0 the system chooses a free port for each process.
    return port + process.number - 1 if port and process is not None else port


def _telling(options: RunnerOptions, process: Supervised | None) -> RunnerOptions:
    """The options, with events that report to the supervisor that the process works."""
    if process is None:
        return options
    ready = process.ready
    events = Events()
    events.subscribe(PoolCreate, lambda _event: ready())
    return {**options, "events": events}


async def _run_watching(
    connection: str | None,
    options: RunnerOptions,
    given: AsyncGenerator[dict[str, Task[Any]], None],
    process: Supervised | None,
) -> None:
    """Run, and restart with new tasks whenever their files change."""
    options.pop("task_directory", None)
    async with aclosing(given) as versions:
        options["tasks"] = await anext(versions)

        async def watch(reload: _Reload) -> None:
            options["tasks"] = await anext(versions)
            reload.changed.set()

        while True:
            reload = _Reload()
            crew = aio.Crew()
            crew.start(watch(reload), name="watch")
            try:
                await _run_until_stopped(connection, options, process, reload)
            finally:
                await crew.cancel(patience=1)
            if not reload.changed.is_set():
                return
            if reload.signal is not None:
                # It arrived while jobs of the old tasks ended and the pool was stopping already.
                logger.info("Not restarting after the reload: received %s", reload.signal)
                return


async def _run_until_stopped(
    connection: str | None,
    options: RunnerOptions,
    process: Supervised | None,
    reload: _Reload | None = None,
) -> None:
    """Run until a signal comes, or until tasks have changed."""
    forced = False
    reload = reload or _Reload()

    def gracefully(event: GracefulShutdown) -> None:
        reload.signal = event.signal

    def by_force(_event: ForcefulShutdown) -> None:
        nonlocal forced
        forced = True

    started = False
    try:
        async with Runner(connection, **_telling(options, process)) as runner:
            started = True
            runner.events.subscribe(GracefulShutdown, gracefully)
            runner.events.subscribe(ForcefulShutdown, by_force)
            if config.logs_success():
                about = {"pool_id": runner.pool_id}
                logger.info("Working as %s on %s", runner.pool_id, runner.about, extra=about)
            async with aio.until(reload.changed):
                await runner.wait()
    except IncompatibleSchemaError as error:
        if not started:
            raise
        exit_with(str(error), EXIT_INCOMPATIBLE_WHILE_RUNNING)
    finally:
        if forced:
            # All outcomes that can be recorded are. An orderly exit would wait forever for a task
            # that ignores its cancellation.
            logging.shutdown()
            os._exit(EXIT_FAILURE)


def import_from_here() -> None:
    """Let modules of the working directory be imported, as by `python -m`."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def named_modules(names: str | Sequence[str]) -> list[str]:
    """The modules that `tasks` names: one, several with commas between, or a list of them."""
    return [each.strip() for each in names.split(",")] if isinstance(names, str) else list(names)


def run_in_loop(work: Coroutine[Any, Any, object]) -> None:
    """Run to the end, on uvloop where that is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as loop:
        loop.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
