"""Run a real PgBouncer between a test and its database."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.own_server import quiet_port
from tests.support.processes import Process, Processes

PROGRAM = os.environ.get("GRAPHILE_WORKER_PY_TEST_PGBOUNCER", "pgbouncer")
# Debian has it where only root's PATH leads.
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
ACCOUNT = "nobody"
START_TIMEOUT = 10.0

INI = """
[databases]
* = host={host} port={port} user={user} password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 4
max_client_conn = 200
server_login_retry = 1
# Each transaction gets the connection that was idle for longest, so that what depends on keeping
# one fails in every run.
server_round_robin = 1
"""


def find_pgbouncer() -> str | None:
    """The program; None if it is not installed."""
    return shutil.which(PROGRAM, path=PLACES)


class PgBouncer:
    """A PgBouncer for one database, on a port of its own."""

    def __init__(
        self, program: str, directory: Path, dsn: str, processes: Processes, *, mode: str
    ) -> None:
        self._processes = processes
        self._process: Process | None = None
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"PgBouncer (\d+)\.(\d+)", said.stdout)
        assert found is not None, said.stdout
        self.version = (int(found[1]), int(found[2]))
        server = conninfo_to_dict(dsn)
        port = quiet_port()
        ini = INI.format(**server, listen_port=port, mode=mode)
        if self.prepares:
            ini += "max_prepared_statements = 100\n"
        path = directory / "pgbouncer.ini"
        path.write_text(ini)
        path.chmod(0o644)
        self._command = [program, str(path)]
        if os.geteuid() == 0:
            self._command[1:1] = ["-u", ACCOUNT]
        self.dsn = make_conninfo("", **{**server, "host": "127.0.0.1", "port": port})

    @property
    def prepares(self) -> bool:
        """Whether this release can keep track of prepared statements."""
        return self.version >= (1, 21)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = self._processes.start(self._command)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=5).close()
            except psycopg.OperationalError:
                if self._process.returncode is not None or time.monotonic() >= deadline:
                    raise AssertionError(f"PgBouncer: {self._process.stderr}") from None
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End it at once, with all its connections."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def running_pgbouncer(
    program: str, dsn: str, processes: Processes, *, mode: str
) -> Iterator[PgBouncer]:
    """A PgBouncer that leads to a database, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="graphile-worker-py-pgbouncer-") as name:
        Path(name).chmod(0o755)
        bouncer = PgBouncer(program, Path(name), dsn, processes, mode=mode)
        bouncer.start()
        yield bouncer
        bouncer.kill()
