"""The fixtures of all tests, and the checks that nothing outlives a test."""

import asyncio
import inspect
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from graphile_worker_py.dev.postgres import EmbeddedPostgres
from graphile_worker_py.testing.server import SETTINGS, fast_directory, hasten_logins
from tests.support.kept import close_kept
from tests.support.missing import missing
from tests.support.node import LATEST, Node
from tests.support.own_server import OWN_SETTINGS, OwnServer, server_place
from tests.support.processes import Processes
from tests.support.server import Server, bin_dir_of

# Where it is set, each of the many programs that tests start would compile every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SCHEMA = "graphile_worker"
THREADS_BEFORE = pytest.StashKey[set[threading.Thread]]()
TASK_PROCESS = b"graphile_worker_py.executors.child"
TASK_GUARD = b"graphile_worker_py/executors/guard.py"

Install = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller choose the server version, and how long faults last."""
    parser.addoption(
        "--postgres",
        default=os.environ.get("GRAPHILE_WORKER_PY_TEST_POSTGRES", "18"),
        help="PostgreSQL server to test on: 12 to 18, system, or a directory with its programs",
    )
    parser.addoption(
        "--only-database",
        action="store_true",
        help="Leave out the tests that can't differ on another server: they use none, or are about"
        " processes, files, texts or a browser",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="Run the tests marked as long too, let each fault last and come again, and try many"
        " more examples",
    )
    parser.addoption(
        "--leak-patience",
        type=float,
        default=4.0,
        help="seconds in which connections and threads of a test must end after it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes for each core, at most four in all: tests often wait for a moment to come."""
    return min(2 * (os.cpu_count() or 1), 4)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which server is used."""
    return f"postgres: {bin_dir_of(config.getoption('--postgres'))}"


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Starts child processes; each is killed when its test ends."""
    processes = Processes()
    yield processes
    processes.end_all()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and let Ctrl-C end a run that a shell has started in the background."""
    config.addinivalue_line("markers", "long: runs only with --long")
    config.addinivalue_line("markers", "any_server: can't differ on another server")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that the options leave out."""
    left_out: set[pytest.Item] = set()
    if not config.getoption("--long"):
        left_out.update(item for item in items if item.get_closest_marker("long") is not None)
    if config.getoption("--only-database"):
        left_out.update(item for item in items if not _uses_server(item))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=_is_short)


def _is_short(item: pytest.Item) -> bool:
    """Whether it is of a folder of short tests. The others begin first, so that none ends last."""
    return item.path.parent.name == "tests"


def _uses_server(item: pytest.Item) -> bool:
    if item.get_closest_marker("any_server") is not None:
        return False
    return bool({"server", "own_server"} & set(getattr(item, "fixturenames", ())))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what commands that run in this process set."""
    loggers = [logging.getLogger(name) for name in (None, "psycopg.pool")]
    before = [(logger, logger.level, [*logger.handlers]) for logger in loggers]
    yield
    logging.captureWarnings(capture=False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _no_process_left(processes: Processes) -> Iterator[None]:
    yield
    processes.end_all()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """A PostgreSQL server of this test run's own."""
    bin_dir = bin_dir_of(pytestconfig.getoption("--postgres"))
    with EmbeddedPostgres(
        bin_dir=bin_dir, settings=SETTINGS, temp_dir=fast_directory()
    ) as postgres:
        hasten_logins(postgres)
        with closing(Server(postgres, stays=True)) as server:
            yield server


@pytest.fixture(scope="session")
def node(processes: Processes) -> Node:
    """Node and the graphile-worker package."""
    if shutil.which("npm") is None:
        missing("npm is not installed: nothing can be compared with the Node package")
    return Node(processes)


@pytest.fixture(scope="session")
def install(request: pytest.FixtureRequest) -> Install:
    """Install the schema with `install(installer, dsn, schema="graphile_worker")`.

    The installers: `node`; `python`, which is our `run_migrations`; and `worker`, by which the side
    schema is there too, as any worker of ours leaves a database.
    """

    def install_schema(installer: str, dsn: str, schema: str = SCHEMA) -> None:
        if installer == "node":
            node: Node = request.getfixturevalue("node")
            node.cli(LATEST, "--schema-only", "--connection", dsn, "--schema", schema)
        else:
            _install_with_python(dsn, schema, side_schema=installer == "worker")

    return install_schema


def _install_with_python(dsn: str, schema: str, *, side_schema: bool) -> None:
    from graphile_worker_py import run_migrations

    # In a thread of its own, where no event loop runs yet.
    with ThreadPoolExecutor(1) as thread:
        installing = run_migrations(dsn, schema=schema, side_schema=side_schema)
        thread.submit(asyncio.run, installing).result()


@pytest.fixture(scope="session")
def template(server: Server, install: Install) -> Callable[[str], str]:
    """The database that an installer prepared, made when first asked for."""
    made: dict[str, str] = {}

    def template_of(installer: str) -> str:
        if installer not in made:
            dsn = server.create_database()
            install(installer, dsn)
            made[installer] = dsn
        return made[installer]

    return template_of


@pytest.fixture(scope="session")
def leak_patience(pytestconfig: pytest.Config) -> float:
    """Seconds that the connections of a test get to close after it."""
    return float(pytestconfig.getoption("--leak-patience"))


@pytest.fixture
def installer(request: pytest.FixtureRequest) -> str:
    """Who installs the schema of `dsn`: a worker, or `INSTALLER` of the module of the test.

    Both packages install the same, as `compat_tests/test_catalog.py` shows, and a worker adds the
    side schema, which takes longer than all else in many a test that runs one. A test for which
    the installer matters is marked with `BOTH_INSTALLERS` or `WITHOUT_SIDE_SCHEMA`.
    """
    return str(getattr(request.module, "INSTALLER", "worker"))


@pytest.fixture
def dsn(
    installer: str,
    template: Callable[[str], str],
    server: Server,
    processes: Processes,
    leak_patience: float,
) -> Iterator[str]:
    """A database for the test, with the schema `graphile_worker` installed."""
    yield from _database(server, processes, template(installer), leak_patience)


@pytest.fixture
def empty_dsn(server: Server, processes: Processes, leak_patience: float) -> Iterator[str]:
    """An empty database for the test."""
    yield from _database(server, processes, None, leak_patience)


def _database(
    server: Server, processes: Processes, template: str | None, leak_patience: float
) -> Iterator[str]:
    dsn = server.create_database(template)
    yield dsn
    processes.end_all()  # first, for their connections are no leak of the test's
    close_kept(dsn)
    leaked = server.open_connections(dsn, patience=leak_patience)
    server.drop_database(dsn)
    if leaked:
        pytest.fail("the test left connections open:\n" + "\n".join(leaked))


@pytest.fixture(scope="module")
def own_server(pytestconfig: pytest.Config) -> Iterator[OwnServer]:
    """A server of a module's own, which may be killed, restarted and replaced."""
    bin_dir = bin_dir_of(pytestconfig.getoption("--postgres"))
    with server_place() as place:
        server = OwnServer(bin_dir, place / "data", OWN_SETTINGS)
        server.start()
        hasten_logins(server.postgres)
        yield server
        server.stop()


@pytest.fixture(scope="module")
def own_databases(own_server: OwnServer) -> Server:
    """Makes databases there."""
    return Server(own_server.postgres)


@pytest.fixture(scope="module")
def own_template(own_databases: Server, install: Install) -> str:
    """A database with the schema there."""
    dsn = own_databases.create_database()
    install("python", dsn)
    return dsn


@pytest.fixture
def own_dsn(
    own_server: OwnServer,
    own_databases: Server,
    own_template: str,
    processes: Processes,
    leak_patience: float,
) -> Iterator[str]:
    """A database for the test on the server of its module."""
    own_server.be_there()
    yield from _database(own_databases, processes, own_template, leak_patience)


@pytest.fixture(autouse=True)
def _no_task_left_in_async_tests(request: pytest.FixtureRequest) -> None:
    # Asked for here, before the test's own fixtures, so that it ends after them.
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_left")


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(10):  # what was cancelled or has just returned may need a turn or two
        await asyncio.sleep(0)
    leaked = asyncio.all_tasks() - before - {asyncio.current_task()}
    if leaked:
        names = "\n".join(repr(task) for task in leaked)
        for task in leaked:
            task.cancel()
        pytest.fail("the test left asyncio tasks running:\n" + names)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Note the threads that run before the test and its fixtures."""
    item.stash[THREADS_BEFORE] = set(threading.enumerate())
    return (yield)


def task_processes() -> list[int]:
    """The processes of tasks, and their guards, that this process has started."""
    children = [*Path("/proc/self/task").glob("*/children")]
    assert children, "this kernel does not list the children of a process"
    found = []
    for pid in {pid for path in children for pid in _words_of(path)}:
        command = _words_of(Path(f"/proc/{pid.decode()}/cmdline"), b"\0")
        if any(part in word for word in command for part in (TASK_PROCESS, TASK_GUARD)):
            found.append(int(pid))
    return found


def _words_of(path: Path, separator: bytes | None = None) -> list[bytes]:
    with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return path.read_bytes().split(separator)
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Fail the test if a thread or process outlives it and its fixtures, event loop included."""
    result = yield
    if "graphile_worker_py.executors.process" in sys.modules and (left := task_processes()):
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        pytest.fail(f"the test left processes of tasks running: {left}")
    before = item.stash[THREADS_BEFORE]
    deadline = time.monotonic() + item.config.getoption("--leak-patience")
    while leaked := set(threading.enumerate()) - before:
        if time.monotonic() >= deadline:
            names = ", ".join(sorted(thread.name for thread in leaked))
            pytest.fail(f"the test left threads running: {names}")
        time.sleep(0.01)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write out lone surrogates that a test has logged: they can't be sent between processes."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report
