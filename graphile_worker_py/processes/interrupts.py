"""Tell the KeyboardInterrupt that a task raised from a Ctrl-C."""

import asyncio.runners
import dis
import signal
from typing import Final

from graphile_worker_py.errors import kind_of, message_of

_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def is_ctrl_c(error: KeyboardInterrupt) -> bool:
    """Whether a signal handler raised the error, and not the code of a task.

    A worker handles SIGINT itself, without an exception. A program that runs a worker may leave
    the signal to Python or to `asyncio.run`, whose handlers raise KeyboardInterrupt in whatever
    code runs at the moment.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    if code.co_filename == asyncio.runners.__file__:
        return True
    # Python's handler raises it between two instructions, or out of a call.
    by_statement = code.co_code[last.tb_lasti] == _RAISE
    return not by_statement and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def as_failure(error: BaseException) -> RuntimeError:
    """The failure of a job for an error that would end more than the job."""
    kind, message = kind_of(error), message_of(error)
    return RuntimeError(f"task raised {kind}" + ("" if message == kind else f": {message}"))
