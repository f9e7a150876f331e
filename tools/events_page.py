"""Write the table of events in `docs/events.md` from the docstrings of the events.

Run it as `python -m tools.events_page` after an event has changed.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphile_worker_py import events
from graphile_worker_py.events import Event

PAGE = Path(__file__).parent.parent / "docs" / "events.md"
BEGIN = "<!-- begin: written by tools/events_page.py -->\n"
END = "<!-- end -->\n"
FIELDS_OF_BASES = frozenset({"pool_id", "worker_id", "job"})


def table() -> str:
    """The table of all events, in the order of their module."""
    lines = ["| event | class | meaning | further fields |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{kind.name}` | `{kind.__name__}` | {_when(kind)} | {_fields(kind)} |"
        for kind in _kinds()
    ]
    return "\n".join(lines) + "\n"


def rewritten(page: str) -> str:
    """The page with its table replaced by the current one."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _kinds() -> Iterator[Any]:
    for value in vars(events).values():
        if inspect.isclass(value) and issubclass(value, Event) and hasattr(value, "name"):
            yield value


def _when(kind: Any) -> str:
    text = " ".join((kind.__doc__ or "").split())
    return re.sub(r"\|", r"\\|", text)


def _fields(kind: Any) -> str:
    names = [field.name for field in dataclasses.fields(kind)]
    return ", ".join(f"`{name}`" for name in names if name not in FIELDS_OF_BASES)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
