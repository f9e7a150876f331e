"""What an option is, and how a dataclass declares options as its fields."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeAlias

from graphile_worker_py.checks import check_is
from graphile_worker_py.records import Record

VARIABLE_PREFIX: Final = "GRAPHILE_WORKER_"

Check: TypeAlias = Callable[[str, object], object]
"""Takes the name and the value of an option; raises ConfigurationError if the value is wrong."""


class Kind(StrEnum):
    """The kind of value that an option takes, in the words of the documentation."""

    TEXT = "string"
    PATH = "path"
    WHOLE = "whole number"
    SECONDS = "seconds"
    NUMBER = "number"
    DURATION = "duration"
    YES_NO = "true or false"
    TEXTS = "list of strings"
    TABLE = "table"
    OBJECT = "Python object"


class Option(Record):
    """The one entry of an option: its checks, its flag and its documentation are made from it.

    Attributes:
        name: Key in files and name in code; a dot separates the name of a group from the rest
            (`local_queue.size`).
        kind: The kind of its value, which says the unit, too.
        default: Value of an option that no source sets; None leaves it unset.
        doc: What it does, in whole sentences; Markdown.
        check: Refuses values that are not allowed.
        flags: Its names on the command line of `run`, as click takes them; empty for none.
        metavar: What the help text shows in place of the value; empty chooses it by the kind.
        choices: The only values that are allowed; empty if there is no such list.
        is_repeatable: Whether its flag can be given several times, for several values.
        of_flags: Makes its value of what its flags are given; None takes the texts themselves.
        env: Its environment variable; empty derives it from the name.
        in_code: Whether `run` and `Runner` take it from code.
    """

    name: str
    kind: Kind
    default: Any = None
    doc: str
    check: Check
    flags: tuple[str, ...] = ()
    metavar: str = ""
    choices: tuple[str, ...] = ()
    is_repeatable: bool = False
    of_flags: Callable[[Sequence[str]], object] | None = None
    env: str = ""
    in_code: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return self.env or f"{VARIABLE_PREFIX}{self.name.replace('.', '_').upper()}"

    @property
    def shown_default(self) -> str:
        """Its default as a file would say it; empty if an unset option has no value."""
        match self.default:
            case None:
                return ""
            case bool():
                return str(self.default).lower()
            case float():
                return f"{self.default:g}"
        return str(self.default)


def option(default: Any, kind: Kind, check: Check, doc: str, **given: Any) -> Any:
    """A dataclass field that declares an option; `given` are further attributes of `Option`.

    A string that may hold a password is kept out of the object's text with `secret=True`.
    """
    secret = given.pop("secret", False)
    return field(default=default, metadata=about(kind, check, doc, **given), repr=not secret)


def about(kind: Kind, check: Check, doc: str, **given: Any) -> dict[str, Any]:
    """The metadata of a field that declares an option."""
    return {"kind": kind, "check": check, "doc": doc, **given}


def group(default: Any, of: type, check: Check) -> Any:
    """A dataclass field that holds a group of options: an object of another such dataclass."""
    return field(default=default, metadata={"group": of, "check": check})


def check_fields(options: Any, prefix: str = "") -> None:
    """Check each field of an object whose class declares options."""
    for each in fields(options):
        each.metadata["check"](f"{prefix}{each.name}", getattr(options, each.name))


def options_of(declaring: type, prefix: str = "") -> Iterator[Option]:
    """The options that a dataclass declares, with those of its groups."""
    for each in fields(declaring):
        name = f"{prefix}{each.name}"
        if "group" in each.metadata:
            yield from options_of(each.metadata["group"], f"{name}.")
            continue
        default = None if each.default is MISSING else each.default
        yield Option(name=name, default=default, in_code=not prefix, **each.metadata)


def or_none(check: Check) -> Check:
    """The check that also allows None."""

    def check_or_none(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_or_none


def made(kind: type) -> Check:
    """The check for an object of a class."""
    return partial(check_is, kind=kind, how=f"{kind.__name__}(...)")
