"""What a web application is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from graphile_worker_py.checks import check_duration, check_is, check_seconds, check_whole
from graphile_worker_py.errors import ConfigurationError

DEFAULT_REDACT: Final = ("*password*", "*token*", "*secret*")
AUDIT_RETENTION: Final = "400d"
SHOWN_PAYLOAD: Final = 1_048_576
"""Bytes from which on a payload is cut where it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of `create_app` that all its parts read; explained there."""

    name: str = ""
    schema: str | None = None
    read_only: bool | None = None
    redact: Sequence[str] = DEFAULT_REDACT
    show_payloads: bool = True
    pages: bool = True
    api: bool = True
    max_backlog: int | Mapping[str, int] | None = None
    max_body: int = 1_048_576
    max_bulk_body: int = 10_485_760
    max_bulk: int = 10_000
    statement_timeout: float = 2.0
    pool_size: int = 3
    links: Mapping[str, str] = field(default_factory=dict)
    audit_retention: timedelta | str = AUDIT_RETENTION

    def __post_init__(self) -> None:
        for name in ("max_body", "max_bulk_body", "max_bulk", "pool_size"):
            check_whole(name, getattr(self, name), smallest=1)
        check_seconds("statement_timeout", self.statement_timeout)
        check_duration("audit_retention", self.audit_retention)
        check_is("links", self.links, Mapping, how="a mapping of names to URLs")
        for name, url in self.links.items():
            if not url.startswith(("https://", "http://", "/")):
                raise ConfigurationError(f"links[{name!r}] must be a URL, not {url!r}")
        match self.max_backlog:
            case None:
                pass
            case int():
                check_whole("max_backlog", self.max_backlog, smallest=0)
            case _:
                for task, most in self.max_backlog.items():
                    check_whole(f"max_backlog[{task!r}]", most, smallest=0)

    @property
    def audit_kept(self) -> float:
        """Seconds that rows of the audit log are kept."""
        return check_duration("audit_retention", self.audit_retention)

    def backlog_limit(self, task: str) -> int | None:
        """How many ready jobs a task may have; None means any number."""
        if self.max_backlog is None or isinstance(self.max_backlog, int):
            return self.max_backlog
        return self.max_backlog.get(task)
