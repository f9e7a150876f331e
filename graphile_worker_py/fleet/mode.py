"""The modes of a heartbeat."""

from enum import StrEnum
from typing import Final


class Mode(StrEnum):
    """What a pool's heartbeat is doing; see `Heartbeat`."""

    STARTING = "starting"
    ALIVE = "alive"
    HELD_BACK = "held back"
    STOPPING = "stopping"
    DEAD = "dead"
    WITHOUT = "without"
    GONE = "gone"


SILENT: Final = frozenset({Mode.DEAD, Mode.WITHOUT, Mode.GONE})
"""Modes in which no heartbeats are sent."""
