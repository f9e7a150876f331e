"""A server of a test's own, to be killed and started again."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py.dev.postgres import EmbeddedPostgres
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.testing.server import SETTINGS, fast_directory
from tests.support.rows import rows_of

RECEIVING: Final = "select status from pg_stat_wal_receiver"
OF_WORKERS: Final = "select pid from pg_stat_activity where application_name = 'graphile_worker_py'"
START_TIMEOUT: Final = 15.0
OWN_SETTINGS: Final = {
    **SETTINGS,
    "max_connections": "30",
    # What was committed survives the death of the server, though not that of the machine.
    "synchronous_commit": "on",
    "wal_level": "replica",
    "max_wal_senders": "4",
}
PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
STANDBY: Final = "standby"
STANDBYS: Final = "select sync_state from pg_stat_replication where state = 'streaming'"


class OwnServer:
    """A server that keeps its data and its port when it is started again.

    Attributes:
        postgres: The server while it runs.
    """

    def __init__(self, bin_dir: Path, data_dir: Path, settings: Mapping[str, str]) -> None:
        self.bin_dir = bin_dir
        self._data_dir = data_dir
        self._settings = settings
        self._running = False
        self.postgres = EmbeddedPostgres(
            data_dir,
            port=quiet_port(),
            bin_dir=bin_dir,
            settings=settings,
            temp_dir=data_dir.parent,
        )

    def start(self) -> None:
        """Start it, as soon as nothing is left of the one before."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.postgres.start()
            except GraphileWorkerError as error:
                # The processes of a server that was killed need a moment to notice.
                if "still in use" not in str(error) or time.monotonic() >= deadline:
                    raise
            else:
                self._running = True
                return

    def be_there(self) -> None:
        """Start it if a test that failed has left it stopped."""
        if not self._running:
            self.start()

    def stop(self) -> None:
        """Stop it, ending all sessions."""
        self._running = False
        self.postgres.stop()

    def restart_fast(self) -> None:
        """Stop it, ending all sessions, and start it again."""
        self.stop()
        self.start()

    def restart_immediately(self) -> None:
        """Let it drop everything, and start it again; it has to recover."""
        self._signal(signal.SIGQUIT)
        self.restart_fast()

    def kill(self) -> None:
        """Kill its main process, which it takes for a crash; `start` goes on from there."""
        self._signal(signal.SIGKILL)
        self.stop()

    def promote(self) -> None:
        """Let a standby be the one that takes writes."""
        self.run("select pg_promote()")

    def fall_behind(self) -> None:
        """Let a standby hear no more of what its server does."""
        self.run("alter system set primary_conninfo = ''")
        self.restart_fast()  # PostgreSQL 12 reads it at the start only
        self._wait_until(RECEIVING, [])

    @contextmanager
    def standby(self, *, synchronous: bool) -> Iterator["OwnServer"]:
        """A standby of this server, for as long as the block lasts.

        Args:
            synchronous: Whether a commit here waits until the standby has it.
        """
        data_dir = Path(tempfile.mkdtemp(prefix="standby-", dir=self._data_dir.parent))
        self._copy_to(data_dir)
        standby = OwnServer(self.bin_dir, data_dir, self._settings)
        standby.start()
        try:
            if synchronous:
                self.run(f"alter system set synchronous_standby_names = '{STANDBY}'")
                self.run("select pg_reload_conf()")
            self._wait_until(STANDBYS, [("sync" if synchronous else "async",)])
            yield standby
        finally:
            standby.stop()
            self.be_there()
            self.run("alter system reset synchronous_standby_names")
            self.run("select pg_reload_conf()")
            shutil.rmtree(data_dir)

    @contextmanager
    def small_disk(self, name: str, size: str) -> Iterator[None]:
        """A tablespace on a disk of its own, which is soon full, for as long as the block lasts.

        Raises:
            PermissionError: Nobody may mount one here.
        """
        path = Path(tempfile.mkdtemp(prefix="disk-", dir=self._data_dir.parent))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            path.rmdir()
            raise PermissionError(done.stderr)
        try:
            self._give(path)
            self.run(f"create tablespace {name} location '{path}'")
            yield
            self.run(f"drop tablespace {name}")
        finally:
            subprocess.run(["umount", str(path)], check=True)

    def run(self, sql: str) -> list[tuple[object, ...]]:
        """Run a statement as the superuser, in a transaction of its own."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as conn:
            cursor = conn.execute(sql.encode())
            return rows_of(cursor)

    def _wait_until(self, question: str, answer: list[tuple[object, ...]]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while (found := self.run(question)) != answer:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def _copy_to(self, data_dir: Path) -> None:
        source = make_conninfo(self.postgres.dsn, application_name=STANDBY)
        # Not by pg_basebackup, which does not come with the servers of all versions.
        self.stop()
        shutil.copytree(self._data_dir, data_dir, symlinks=True, dirs_exist_ok=True)
        self.start()
        (data_dir / "standby.signal").touch()
        with (data_dir / "postgresql.auto.conf").open("a") as settings:
            doubled = source.replace("'", "''")
            settings.write(f"primary_conninfo = '{doubled}'\n")
        for path in (data_dir, *data_dir.rglob("*")):
            self._give(path)

    def _give(self, path: Path) -> None:
        owner = self._data_dir.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    def _signal(self, number: signal.Signals) -> None:
        first_line = (self._data_dir / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(first_line), number)


class Slots:
    """Takes all connections that a server has to give."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._taken: list[psycopg.Connection[tuple[object, ...]]] = []

    def take(self) -> int:
        """Take those that are free; how many that were."""
        before = len(self._taken)
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                self._taken.append(psycopg.connect(self._dsn, autocommit=True))
        return len(self._taken) - before

    def take_all(self) -> None:
        """Take those of Python workers, too, which have just been cut off."""
        deadline = time.monotonic() + START_TIMEOUT
        while self.take() or self._taken[0].execute(OF_WORKERS).fetchall():
            # The server is about to end them.
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def let_go(self) -> None:
        """Give all back."""
        while self._taken:
            self._taken.pop().close()


@contextmanager
def server_place() -> Iterator[Path]:
    """A directory that a server's account can reach, for as long as the block lasts."""
    name = tempfile.mkdtemp(prefix="graphile-worker-py-server-", dir=fast_directory())
    Path(name).chmod(0o755)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name)


def quiet_port() -> int:
    """A free port that the system does not give to connections of anybody.

    It is to stay free while the server is down. And who tries to connect from a port to itself
    would succeed.
    """
    lowest = int(PORTS.read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def at_both(one: str, two: str) -> str:
    """A connection string that leads to whichever of two servers takes writes."""
    first, second = conninfo_to_dict(one), conninfo_to_dict(two)
    both = {name: f"{first[name]},{second[name]}" for name in ("host", "port")}
    return make_conninfo("", **{**first, **both, "target_session_attrs": "read-write"})
