"""The log of the command line: lines for people, or JSON for programs."""

import logging
import os
from datetime import UTC, datetime
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.cli.log_handler import PatientHandler
from graphile_worker_py.cli.text import harmless
from graphile_worker_py.errors import traceback_of
from graphile_worker_py.tasks.current import add_job_to_record
from graphile_worker_py.tasks.job_log import STANDARD

PROCESS: Final = "process_number"
"""Field of a record with the number of the supervised process that logs it."""
_COLOURS: Final = {"ERROR": "31", "CRITICAL": "31", "WARNING": "33", "DEBUG": "2"}


class PlainFormatter(logging.Formatter):
    """`19:04:05.123 INFO    Completed job 7 (send_email, 1.52 ms)`, in local time.

    Messages may quote foreign text. So that it can't look like another line or move the cursor,
    control characters are written as escapes, and tracebacks are indented.
    """

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as a line, and its traceback below."""
        moment = datetime.fromtimestamp(record.created).astimezone()
        time = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"
        level = f"{record.levelname:<7}"
        if self._colour and record.levelname in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelname]}m{level}\x1b[0m"
        process = f"[{number}] " if (number := getattr(record, PROCESS, None)) else ""
        text = f"{time} {level} {process}{harmless(_message(record))}"
        if traceback := _traceback_of(record) or record.stack_info:
            text += "".join(f"\n  {harmless(line)}" for line in traceback.split("\n"))
        return text


def _traceback_of(record: logging.LogRecord) -> str:
    """The traceback that a record has, or that of its exception."""
    error = record.exc_info[1] if record.exc_info else None
    return record.exc_text or ("" if error is None else traceback_of(error))


def _message(record: logging.LogRecord) -> str:
    """The message, with the job in front of it where a task logs it."""
    message = record.getMessage()
    job_id = getattr(record, "job_id", None)
    if job_id is None or f"job {job_id} " in f"{message.lower()} ":
        return message
    attempt = getattr(record, "attempt", 1)
    later = f", attempt {attempt}" if attempt != 1 else ""
    return f"Job {job_id} ({getattr(record, 'task_identifier', '?')}{later}): {message}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys of structlog, and the record's fields.

    They are `timestamp` (UTC), `level`, `logger`, `event`, `exception` and `stack`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as a JSON object."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        own = {name: value for name, value in vars(record).items() if name not in STANDARD}
        line = {**own, **line}
        if traceback := _traceback_of(record):
            line["exception"] = traceback
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return json_codec.dumps(line).decode()
        except ValueError:
            return json_codec.dumps({name: _as_json(line[name]) for name in line}).decode()


def _as_json(value: object) -> object:
    try:
        json_codec.dumps(value)
    except ValueError:
        return str(value)
    return value


def configure_logging(*, json: bool, level: str, process: int | None = None) -> None:
    """Write the root logger's records to stderr, with the number of this process if it has one."""
    handler = PatientHandler()
    handler.addFilter(add_job_to_record)
    if process is not None:

        def number(record: logging.LogRecord) -> bool:
            setattr(record, PROCESS, process)
            return True

        handler.addFilter(number)
    colour = handler.stream.isatty() and not os.environ.get("NO_COLOR")
    handler.setFormatter(JsonFormatter() if json else PlainFormatter(colour=colour))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The connection pool logs each connection that it opens at info, and each one that it can't
    # open as a warning. The worker itself logs an outage once.
    is_debug = root.level <= logging.DEBUG
    logging.getLogger("psycopg.pool").setLevel(logging.WARNING if is_debug else logging.ERROR)
    logging.captureWarnings(capture=True)
