"""Which errors are the same: those of one type that were raised at one place."""

import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

from graphile_worker_py.errors import kind_of

LONGEST_GROUP: Final = 500
"""Characters."""
_OURS: Final = f"{Path(__file__).parent.parent}/"
_SPECIAL: Final = "<"
"""How the names of files begin that are none: `<string>`, `<frozen …>`."""


def _installed() -> tuple[str, ...]:
    """Folders of installed code: the standard library, and packages."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(f"{path}/" for path in paths)


_INSTALLED: Final = _installed()


def error_group(error: BaseException) -> str:
    """The exception's type, and the function of the user's code that is nearest to where it arose.

    Without line numbers, which change with each release: `ValueError in app.tasks:charge`.
    """
    try:
        return _error_group(error)[:LONGEST_GROUP]
    except BaseException:  # the class of an error may do anything, `SystemExit` included
        return kind_of(error)[:LONGEST_GROUP]


def _error_group(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    place = _own_place(error.__traceback__)
    name = f"{module}{kind.__qualname__}"
    return name if place is None else f"{name} in {place}"


def _own_place(trace: TracebackType | None) -> str | None:
    """The innermost function of the user's code; None if there is none in the traceback.

    The user's code is what is not installed. A program that is installed as a package is
    recognized by its task, which is the outermost function that is not ours.
    """
    frames = [frame for frame in _frames(trace) if not _file(frame).startswith((_OURS, _SPECIAL))]
    if not frames:
        return None
    package = _package(frames[0])
    own = [
        frame
        for frame in frames
        if not _file(frame).startswith(_INSTALLED) or _package(frame) == package
    ]
    innermost = own[-1]
    return f"{_module(innermost)}:{innermost.f_code.co_qualname}"


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]
