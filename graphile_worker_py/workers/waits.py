"""How long a worker pool waits for answers, and for tasks to end."""

from dataclasses import dataclass
from typing import Final

from graphile_worker_py.backoff import Backoff

DEAF: Final = Backoff(shortest=60.0, longest=600.0, factor=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Seconds that a worker pool waits. They are no options: only tests need other values.

    Attributes:
        stop: How long a stop waits for the last fetch, and for the jobs of one that was lost.
        kill: How long a forced stop waits for cancelled tasks, and then for the last outcomes.
        begin_listening: How long a new listening connection gets for each of its first statements.
        echo: How long the listener waits for its own notification.
        late_echo: How long it waits in addition: the time may be up because the event loop stood
            still.
        deaf: Pauses between two tries to listen where LISTEN has no effect.
        look: The pause between two looks of the watchdog, if `watchdog_timeout` allows it.
        first_warning: How long the event loop stands still before the watchdog first warns. It
            warns again each time that this has doubled.
    """

    stop: float = 3.0
    kill: float = 5.0
    begin_listening: float = 10.0
    echo: float = 5.0
    late_echo: float = 1.0
    deaf: Backoff = DEAF
    look: float = 1.0
    first_warning: float = 10.0
