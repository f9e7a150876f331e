"""End a process although its tasks have left threads or asyncio tasks that do not end."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from time import sleep
from types import FrameType
from typing import Any, Final

from graphile_worker_py.cli.exits import EXIT_FAILURE, EXIT_USAGE
from graphile_worker_py.errors import ConfigurationError, one_line

logger = logging.getLogger("graphile_worker_py")

PATIENCE: Final = 3.0
"""Seconds that what tasks have left gets to end."""


def run_to_its_end(
    work: Coroutine[Any, Any, object], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """Run work in an event loop, after which the process is to end.

    Python waits at its end for all threads that are not daemons, and the event loop for all its
    tasks. If the work has left some of them, they get a few seconds. Then the process ends without
    them, with the exit code that it would have had.
    """
    runner = asyncio.Runner(loop_factory=loop_factory)
    loop = runner.get_loop()
    status, error = 0, None
    try:
        runner.run(work)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else EXIT_FAILURE
        raise
    except BaseException as raised:
        status = EXIT_USAGE if isinstance(raised, ConfigurationError) else EXIT_FAILURE
        error = raised
        raise
    finally:
        threads, tasks = _threads(), asyncio.all_tasks(loop)
        if threads or tasks:
            ending = threading.Thread(
                target=_end_without_them,
                args=(threads, tasks, status, error),
                name="graphile_worker_py end",
                daemon=True,
            )
            ending.start()
        runner.close()


def _end_without_them(
    threads: list[threading.Thread],
    tasks: set[asyncio.Task[Any]],
    status: int,
    error: BaseException | None,
) -> None:
    sleep(PATIENCE)
    left = [_described(each) for each in threads if each.is_alive()]
    left += [f"asyncio task {each.get_name()!r}" for each in tasks if not each.done()]
    if not left:
        return
    if error is not None:
        logger.error("%s", one_line(error))
    logger.warning(
        "Ending without %d thread(s) or asyncio task(s) that tasks have left running: %s",
        len(left),
        "; ".join(left),
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    logging.shutdown()
    os._exit(status)


def _threads() -> list[threading.Thread]:
    """The threads that Python waits for at its end."""
    main = threading.main_thread()
    return [each for each in threading.enumerate() if not each.daemon and each is not main]


def _described(thread: threading.Thread) -> str:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return f"thread {thread.name!r}"
    return f"thread {thread.name!r} in {frame.f_code.co_filename}, line {frame.f_lineno}"
