"""How a process ended, in words."""

import signal


def end_of(returncode: int | None) -> str:
    """How a process with this exit code ended; a negative one is minus the number of a signal."""
    if returncode is None or returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:  # real-time signals have no names
        name = f"signal {-returncode}"
    return f"was ended by {name}"
