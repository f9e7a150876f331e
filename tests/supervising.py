"""Workers that only pretend, and their supervisor: `python -m tests.supervising WHAT`.

Without the package's command line, so that times can be short and workers misbehave.
"""

import logging
import os
import signal
import socket
import sys

from graphile_worker_py.backoff import Backoff
from graphile_worker_py.processes.supervised import VARIABLE
from graphile_worker_py.processes.supervisor import Patience, Supervisor

PATIENCE = Patience(healthy=60.0, restart=Backoff(0.01, 0.02), deaths=3, forced=2.0)


def say(text: str) -> None:
    """Write a line at once, whoever else is writing."""
    os.write(1, f"{text}\n".encode())


def supervise(what: str) -> int:
    """Supervise two processes that do this."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = [sys.executable, "-m", "tests.supervising", what]
    return Supervisor(2, command=command, once=what == "once", patience=PATIENCE).run()


def work(what: str) -> int:
    """Be one of the processes."""
    number, _, descriptor = os.environ.pop(VARIABLE).partition(":")
    channel = socket.socket(fileno=int(descriptor))
    if what == "never ready":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        say(f"{number} starts")
        signal.pause()
    if what == "stuck":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.send(b"ready\n")
    say(f"{number} works")
    match what:
        case "dies":
            return 7
        case "first ends" if number == "1":
            return 0
        case "once":
            return 3 if number == "2" else 0
    while told := channel.recv(100):
        say(f"{number} {told.decode().strip()}")
        if what != "stuck":
            break
    # The first one ends well, the second one does not.
    return int(number) - 1


if __name__ == "__main__":
    do = work if VARIABLE in os.environ else supervise
    sys.exit(do(sys.argv[1]))
