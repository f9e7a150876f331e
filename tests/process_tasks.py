"""Tasks that run in processes, for `test_process_tasks.py`; a process imports them by name."""

import asyncio
import contextvars
import decimal
import logging
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graphile_worker_py import (
    Discard,
    GraphileWorkerError,
    JobSpec,
    ProcessJobContext,
    RetryIn,
    Snooze,
    task,
)

MEGABYTE = 1024**2


@dataclass
class Order:
    """A typed payload."""

    path: str
    count: int


class TravelsError(Exception):
    """An error that can be pickled."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class StaysError(Exception):
    """An error that can be pickled, but not be made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def note(path: str, text: object) -> None:
    """Write a line that the test can read."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


@task(executor="process")
def tell(payload: dict[str, Any], ctx: ProcessJobContext) -> None:
    """Write down what a task can see."""
    same = ctx.job.payload == payload
    note(payload["path"], f"{os.getpid()} {ctx.job.id} {same} {ctx.worker_id} {ctx.pool_id}")


@task(executor="process")
def pid(path: str) -> None:
    """Write down which process it is, and whether it leads a group."""
    note(path, f"{os.getpid()} {os.getpgrp() == os.getpid()}")


@task(executor="process")
def typed(payload: Order) -> None:
    """Take a payload that is built."""
    note(payload.path, f"{type(payload).__name__} {payload.count}")


@task(executor="process")
def log(payload: str, ctx: ProcessJobContext) -> None:
    """Log in several ways."""
    ctx.logger.info("hello %s", payload)
    logging.getLogger("theirs").warning("mine", extra={"odd": object, "even": 2})
    logging.getLogger("theirs").debug("not wanted")
    try:
        int("inner")
    except ValueError:
        logging.getLogger("theirs").exception("went wrong")


@task(executor="process")
def fail(payload: str) -> None:
    """Fail in a way that is asked for."""
    match payload:
        case "travels":
            raise TravelsError(7)
        case "stays":
            raise StaysError("this", "that")
        case "exit":
            raise SystemExit(3)
        case "stop":
            raise StopIteration
        case "cancelled":
            raise asyncio.CancelledError
        case "local":

            class LocalError(Exception):
                pass

            raise LocalError("of nowhere")


@task(executor="process")
def crash(payload: str) -> None:
    """End the process in a way that is asked for."""
    match payload:
        case "exit":
            os._exit(3)
        case "clean":
            os._exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "abort":
            os.abort()
        case "closed":
            os.closerange(3, 200)
        case "garbage":
            for number in range(3, 200):
                with suppress(OSError):
                    os.write(number, b"\xff" * 20)
            time.sleep(30)


@task(executor="process", timeout=0.5)
def forever(path: str) -> None:
    """Start a program, and hold the interpreter for hours."""
    child = subprocess.Popen(["sleep", "60"])
    note(path, f"{os.getpid()} {child.pid}")
    re.match(r"(a+)+$", "a" * 40 + "b")


@task(executor="process")
def forever_without_limit(path: str) -> None:
    """The same, without a timeout."""
    forever(path)


@task(executor="process", memory=150 * MEGABYTE)
def take(payload: dict[str, Any]) -> None:
    """Take memory, by itself or by a program that it starts."""
    code = (
        f"held = bytearray(b'x') * {payload['bytes']}; import time; time.sleep({payload['hold']})"
    )
    if payload["inside"]:
        exec(code)
    else:
        subprocess.run([sys.executable, "-c", code], check=True)


@task(executor="process")
def add(payload: str, ctx: ProcessJobContext) -> None:
    """Add jobs, and write down what came of it."""
    one = ctx.add_job(pid, payload, queue_name="q", priority=5)
    several = ctx.add_jobs([JobSpec("other", n, job_key=f"k{n}") for n in range(2)])
    note(payload, f"{one.id > ctx.job.id} {one.payload} {len(several)} {ctx.get_queue_name()}")
    try:
        ctx.add_job("other", priority=10**6)
    except ValueError as error:
        note(payload, type(error).__name__)
    try:
        ctx.get_queue_name(999)
    except GraphileWorkerError as error:
        note(payload, type(error).__name__)


@task(executor="process")
def wait_for_abort(path: str, ctx: ProcessJobContext) -> None:
    """End when the worker wants to."""
    note(path, "begun")
    note(path, ctx.abort_event.wait(15))


@task(executor="process")
def wait_for_file(payload: dict[str, str]) -> None:
    """Say who it is, then end when the other file is there."""
    note(payload["path"], os.getpid())
    deadline = time.monotonic() + 15
    while not Path(payload["until"]).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    note(payload["path"], "ended")


@task(executor="process")
def items(payload: list[str]) -> list[Any]:
    """A batch job with items of all kinds."""

    async def item(name: str) -> None:
        await asyncio.sleep(0)
        if name.startswith("bad"):
            raise TravelsError(len(name))

    def result(name: str) -> Awaitable[None] | str:
        return item(name) if name != "plain" else name

    return [result(name) for name in payload]


@task(executor="process")
def too_few_items(payload: list[str]) -> list[Any]:
    """A batch job that forgets an item."""
    return items.function(payload)[1:]  # type: ignore[no-any-return]


@task(executor="process")
def awaited(path: str) -> Any:
    """Return what is to be awaited."""

    async def later() -> None:
        await asyncio.sleep(0)
        note(path, "awaited")

    return later()


@task(executor="process")
def fork(path: str) -> None:
    """Start processes of its own, one of which is ended by a signal, and log there."""
    context = multiprocessing.get_context("fork")
    quick = context.Process(target=logging.getLogger("theirs").warning, args=("from a fork",))
    slow = context.Process(target=time.sleep, args=(60,))
    quick.start()
    slow.start()
    slow.terminate()
    slow.join(5)
    quick.join(5)
    note(path, f"{quick.exitcode} {slow.exitcode}")


@task(executor="process")
def ignore_signals(path: str) -> None:
    """Live through the signals that a supervisor may send to all processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    note(path, "alive")


@task(executor="process")
def leak(payload: dict[str, Any]) -> None:
    """Keep memory for good."""
    kept = globals().setdefault("KEPT", [])
    kept.append(b"x" * (payload["megabytes"] * MEGABYTE))
    note(payload["path"], os.getpid())


class Holder:
    """A place for a task within a class."""

    @staticmethod
    def method(path: str) -> None:
        """Write down that it was called."""
        note(path, "method")


held = task("held", executor="process")(Holder.method)


COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@task(executor="process")
def colour(payload: object) -> None:
    """Fail if another job has left its context."""
    if COLOUR.get() != "none" or decimal.getcontext().prec != 28:
        raise ValueError("not the first one")
    COLOUR.set("red")
    decimal.getcontext().prec = 5


@task(executor="process")
def fork_and(payload: dict[str, Any], ctx: ProcessJobContext) -> None:
    """Fork, and let the child go on in the code of the task."""
    child = os.fork()
    if child == 0:
        if payload["late"]:
            time.sleep(0.3)
        match payload["child"]:
            case "returns":
                return
            case "raises":
                raise ValueError("of the fork")
            case "exits":
                sys.exit(3)
            case "adds":
                try:
                    ctx.add_job("other")
                except GraphileWorkerError as error:
                    note(payload["path"], error)
                return
    if not payload["late"]:
        note(payload["path"], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@task(executor="process")
def slow(payload: str) -> None:
    """Take longer than the late fork of another job."""
    time.sleep(0.6)
    note(payload, "slow")


class BombError(Exception):
    """An error that runs code where it is unpickled."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __reduce__(self) -> Any:
        return note, (self.path, os.getpid())


@task(executor="process")
def bomb(payload: dict[str, str]) -> None:
    """Send to the worker what runs code where it is unpickled."""
    error = BombError(payload["path"])
    if payload["how"] == "raised":
        raise error
    body = pickle.dumps(error)
    for number in range(3, 200):
        with suppress(OSError):
            os.write(number, len(body).to_bytes(8, "big") + body)
    time.sleep(30)


LEFT: list[threading.Thread] = []


@task(executor="process")
def leave_a_thread(path: str, ctx: ProcessJobContext) -> None:
    """Leave a thread behind that uses the context later."""

    def later() -> None:
        time.sleep(0.3)
        try:
            ctx.add_job("other")
        except GraphileWorkerError as error:
            note(path, error)

    LEFT.append(threading.Thread(target=later, daemon=True))
    LEFT[-1].start()


@task("decides", executor="process")
def decides(payload: str) -> Any:
    """End the job by a decision."""
    match payload:
        case "snooze":
            raise Snooze(100)
        case "snooze by return":
            return Snooze(100)
        case "retry at":
            raise RetryIn(datetime(2050, 1, 1, tzinfo=UTC), "later")
        case _:
            raise Discard("not wanted")


@task(executor="process")
def fail_all_but_first(payload: list[Any]) -> list[Any]:
    """Fail all items of a batch job but the first."""

    async def fail() -> None:
        raise ValueError

    return [None, *(fail() for _ in payload[1:])]


@task(executor="process")
def steps(payload: str, ctx: ProcessJobContext) -> None:
    """Leave a checkpoint and fail, and return it the next time, once a file is there."""
    if ctx.cursor is None:
        ctx.checkpoint({"at": 1})
        raise RuntimeError("go on from there")
    ctx.progress(3, total=4, message="nearly")
    ctx.set_result(ctx.cursor)
    while not Path(payload).exists():
        time.sleep(0.02)


@task(executor="process")
def answer(payload: dict[str, Any], ctx: ProcessJobContext) -> Any:
    """Return or set a result that is asked for, after much progress."""
    for done in range(payload.get("reports", 0)):
        ctx.progress(done + 1, total=payload["reports"])
    match payload["kind"]:
        case "returned":
            return {"order": Order("a", 2), "number": 12345678901234567890123}
        case "set":
            ctx.set_result([1, "two"])
        case "unwritable":
            return {"a": {1}}
        case "large":
            return "x" * 2 * MEGABYTE
    return None


@task(executor="process")
def answers(payload: list[str]) -> list[Any]:
    """Return one result for each item; one that is a text is its outcome."""
    return [Discard("no such item") if item == "discard" else item for item in payload]


@task(executor="process")
def until_cancelled(_payload: object, ctx: ProcessJobContext) -> None:
    """End when asked to."""
    ctx.abort_event.wait(30)
    ctx.raise_if_cancelled()


@task(executor="process")
def log_fields(payload: dict[str, Any], ctx: ProcessJobContext) -> None:
    """Log with the fields of the payload."""
    ctx.logger.info("logged", extra=payload)


@task("log_in_process", executor="process", capture_logs="INFO")
def log_in_process(payload: Any, ctx: ProcessJobContext) -> None:
    """Log with both loggers, then fail."""
    ctx.logger.debug("left out")
    ctx.logger.info("by the context")
    logging.getLogger("app").warning("by a logger")
    raise ValueError("after that")


@task(executor="process")
def note_and_die(path: str) -> None:
    """Die after a beginning that can be seen."""
    note(path, os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


@task(executor="process")
def echo(payload: str, ctx: ProcessJobContext) -> str:
    """Log the payload."""
    ctx.logger.info("%s", payload)
    return "echoed"
