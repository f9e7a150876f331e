"""What a measure is: a name, its sides, how to run it, and its figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.lab import Lab

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One of the figures of a measure.

    Attributes:
        title: Its name in tables.
        unit: Its unit.
        more_is_better: Whether a higher figure is better.
    """

    title: str
    unit: str
    more_is_better: bool


@dataclass(frozen=True)
class Measure:
    """A measurement of several sides.

    Attributes:
        name: Its name for `--only` and in files.
        sides: The names of its sides; `pgbench` is one of them, too.
        run: Takes a lab and the name of a side. Returns the figures by their names, and other
            values to store.
        figures: The figures that go into tables.
        is_long: Whether it takes many minutes, so that only its name in `--only` asks for it.
    """

    name: str
    sides: tuple[str, ...]
    run: Callable[[Lab, str], Outcome]
    figures: Mapping[str, Figure]
    is_long: bool = False
