"""The command line as a person or a process manager uses it."""

import json
import re
import socket
import sys
import time
from importlib import metadata
from pathlib import Path

import psycopg
import pytest

from tests.support.app import GRACE
from tests.support.processes import Process, Processes
from tests.support.rows import rows_of

pytestmark = pytest.mark.any_server

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "graphile_worker_py"]

TASKS = """
from graphile_worker_py import task

@task
async def hello(payload, ctx):
    print("hello", payload["name"], flush=True)

@task("long/one")
async def long_one(payload, ctx):
    print("began", flush=True)
    await ctx.abort_event.wait()
    print("aborted", flush=True)

only_hello = [hello]
not_tasks = 42
"""
MORE = """
from graphile_worker_py import task
from app_tasks import hello

@task
def bye(payload):
    print("bye", payload["name"], flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app_tasks.py").write_text(TASKS)
    (tmp_path / "twins.py").write_text(TASKS)
    (tmp_path / "more.py").write_text(MORE)
    return tmp_path


@pytest.fixture
def cli(processes: Processes, folder: Path, dsn: str) -> "Cli":
    return Cli(processes, folder, dsn)


class Cli:
    """Runs the command in a folder with tasks, on the test's database."""

    def __init__(self, processes: Processes, folder: Path, dsn: str) -> None:
        self._processes = processes
        self._folder = folder
        self.dsn = dsn

    def start(self, *arguments: str, dsn: str | None = None) -> Process:
        env = {"DATABASE_URL": dsn or self.dsn, GRACE: "0.3"}
        return self._processes.start([*COMMAND, *arguments], cwd=self._folder, env=env)

    def run(self, *arguments: str, dsn: str | None = None) -> Process:
        process = self.start(*arguments, dsn=dsn)
        process.wait(timeout=15)
        return process

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(statement)
            return rows_of(cursor)


ADD_HELLO = "select graphile_worker.add_job('hello', '{\"name\": \"world\"}')"


def test_once_runs_what_is_due_and_ends_with_0(cli: Cli) -> None:
    cli.sql(ADD_HELLO)
    process = cli.run("--once", "--tasks", "app_tasks")
    assert process.returncode == 0, process.stderr
    assert process.stdout == "hello world\n"
    assert "Completed job" in process.stderr
    assert cli.sql("select * from graphile_worker.jobs") == []


def test_an_attribute_chooses_the_tasks(cli: Cli) -> None:
    process = cli.run("run", "--once", "--tasks", "app_tasks:only_hello")
    assert process.returncode == 0, process.stderr
    assert cli.sql("select identifier from graphile_worker._private_tasks") == [("hello",)]


def test_schema_only_installs_and_ends(cli: Cli, empty_dsn: str) -> None:
    process = cli.run("--schema-only", dsn=empty_dsn)
    assert (process.returncode, process.stdout) == (0, "Schema updated\n")
    with psycopg.connect(empty_dsn) as conn:
        row = conn.execute("select max(id) from graphile_worker.migrations").fetchone()
    assert row == (20,)


def test_sigterm_lets_the_running_job_finish_and_ends_with_0(cli: Cli) -> None:
    cli.sql("select graphile_worker.add_job('long/one')")
    process = cli.start("--tasks", "app_tasks")
    process.wait_for("began")
    process.terminate()
    assert process.wait(timeout=15) == 0, process.stderr
    assert process.lines("aborted") == ["aborted"]
    assert cli.sql("select * from graphile_worker.jobs") == []


def test_logs_for_machines_are_json_with_the_fields_of_the_job(cli: Cli) -> None:
    cli.sql(ADD_HELLO)
    process = cli.run("--once", "--tasks", "app_tasks", "--log-format", "json")
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    (done,) = [line for line in lines if "job_id" in line]
    assert done["level"] == "info"
    assert done["task_identifier"] == "hello"
    assert done["attempt"] == 1
    assert done["worker_id"].startswith("worker-")
    assert done["duration"] > 0


@pytest.mark.parametrize(("jobs", "said"), [("1", "1 job"), ("10", "10 jobs")])
def test_a_worker_says_how_many_jobs_it_runs_at_a_time(cli: Cli, jobs: str, said: str) -> None:
    process = cli.start("--tasks", "app_tasks", "--jobs", jobs)
    expected = f" on 2 task(s) of schema 'graphile_worker', {said} at a time: hello, long/one\n"
    _wait_for_log(process, expected)
    process.terminate()
    assert process.wait() == 0


def test_the_forbidden_flag_leaves_the_job_to_others(cli: Cli) -> None:
    cli.sql("select graphile_worker.add_job('hello', '{\"name\": \"x\"}', flags => '{eu}')")
    process = cli.run("--once", "--tasks", "app_tasks", "--forbidden-flag", "eu")
    assert (process.returncode, process.stdout) == (0, "")
    assert cli.sql("select attempts from graphile_worker.jobs") == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "nowhere"], "--tasks nowhere: there is no module 'nowhere'"),
        (["--tasks", "app_tasks:nothing"], "module 'app_tasks' has no attribute 'nothing'"),
        (["--tasks", "app_tasks:not_tasks"], "not 42"),
        (["--tasks", ":"], "--tasks :: '' is not the name of a module; expected is MODULE[:ATTR]"),
        (["--tasks", ".x"], "--tasks .x: '.x' is not the name of a module"),
        (["--tasks", "json"], "the module has no @task functions; give modules of it, which are "),
        (["--tasks", "json"], "json.decoder, json.encoder, json.scanner"),
        (["--tasks", "os"], "--tasks os: the module has no @task functions\n"),
        (["--tasks", "app_tasks", "--tasks", "twins"], "--tasks: two tasks are named 'hello'"),
        (["--tasks", "app_tasks", "--tasks", ""], "tasks[1] must be a string that is not empty"),
        (["--tasks", "app_tasks.py"], "a file or folder is given by --task-directory"),
        (["--tasks", "./app_tasks.py"], "a file or folder is given by --task-directory"),
        ([], "no tasks: give --tasks MODULE[:ATTR]"),
        (["--tasks", "app_tasks", "-j", "0"], "concurrent_jobs must be a whole number"),
        (["--tasks", "app_tasks", "--poll-interval", "nan"], "poll_interval must be seconds"),
        (["--tasks", "app_tasks", "--task-directory", "."], "exclude each other"),
        (["--tasks", "app_tasks", "--schema", ""], "schema '' is not a name"),
        (["--tasks", "app_tasks", "-c", "nonsense"], "expected postgresql://user@host:"),
        (["--once", "--schema-only"], "exclude each other"),
        (["--once", "--watch"], "exclude each other"),
        (["--no-such-flag"], "No such option"),
        (["--concurrency", "5"], "No such option '--concurrency': use --jobs N"),
        (["--concurrentJobs", "5"], "No such option '--concurrentJobs': use --jobs N"),
        (["-c", "5", "--tasks", "app_tasks"], "for 5 jobs at the same time, give --jobs 5"),
        (["--queue", "mail"], "a worker runs the jobs of all queues; --pool NAME:N:TASK,…"),
        (["-l", "info"], "No such option '-l': use --log-level LEVEL"),
        (["--loglevel=info"], "No such option '--loglevel': use --log-level LEVEL"),
        (["-A", "proj"], "No such option '-A': use --tasks MODULE"),
        (["--burst"], "No such option '--burst': use --once"),
        (["--tasks", "app_tasks", "-P", "9" * 5000], "processes must be a whole number"),
        (
            ["--tasks", "app_tasks", "-P", "3", "--health-port", "65534"],
            "health_port 65534 leaves no port for each of 3 processes",
        ),
    ],
)
def test_a_wrong_word_is_named_and_ends_with_2(
    processes: Processes, folder: Path, arguments: list[str], message: str
) -> None:
    process = processes.start([*COMMAND, *arguments], cwd=folder, env={"DATABASE_URL": "host=x"})
    assert process.wait(timeout=15) == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("raise RuntimeError('half done')", "RuntimeError: half done"),
        ("import nolib", "ModuleNotFoundError: No module named 'nolib'"),
        ("import app_tasks.sub", "ModuleNotFoundError: No module named 'app_tasks.sub'; 'app_ta"),
        ("from app_tasks import nix", "ImportError: cannot import name 'nix'"),
        ("def x(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit('setup missing')", "SystemExit: setup missing"),
    ],
)
def test_a_module_that_breaks_on_import_is_named_with_file_and_line(
    processes: Processes, folder: Path, source: str, fault: str
) -> None:
    (folder / "broken.py").write_text(f"x = 1\n{source}\n")
    process = processes.start([*COMMAND, "--tasks", "broken"], cwd=folder)
    assert process.wait(timeout=15) == 2
    assert process.stderr.startswith(f"Error: --tasks broken: {fault}")
    assert process.stderr.endswith(f"({folder / 'broken.py'}, line 2)\n")
    assert "importlib" not in process.stderr


def test_a_refused_connection_ends_with_1_and_says_why(processes: Processes, folder: Path) -> None:
    dsn = "postgresql://me:secret@127.0.0.1:1/x"
    process = processes.start([*COMMAND, "--tasks", "app_tasks", "-c", dsn], cwd=folder)
    assert process.wait(timeout=15) == 1
    assert "127.0.0.1" in process.stderr
    assert "refused" in process.stderr
    assert "secret" not in process.stderr
    assert "Traceback" not in process.stderr


def test_the_embedded_server_runs_until_it_is_interrupted(processes: Processes) -> None:
    process = processes.start([*COMMAND, "postgres"])
    dsn = process.wait_for("postgresql://")
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    process.interrupt()
    assert process.wait(timeout=15) == 0, process.stderr
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


def test_a_newer_breaking_schema_is_refused_with_1(cli: Cli) -> None:
    cli.sql("insert into graphile_worker.migrations (id, breaking) values (21, true)")
    process = cli.run("--tasks", "app_tasks")
    assert process.returncode == 1
    assert "breaking change at 21" in process.stderr


def test_a_breaking_change_while_running_ends_with_57(cli: Cli) -> None:
    cli.sql(ADD_HELLO)
    process = cli.start("--tasks", "app_tasks")
    process.wait_for("hello world")
    with psycopg.connect(cli.dsn) as conn:
        conn.execute("insert into graphile_worker.migrations (id, breaking) values (21, true)")
        conn.execute("""notify "worker:migrate", '{"migrationNumber":21,"breaking":true}'""")
    assert process.wait(timeout=15) == 57, process.stderr
    assert "breaking change at 21" in process.stderr


def test_a_second_signal_cuts_the_job_off_and_gives_it_back(cli: Cli, folder: Path) -> None:
    (folder / "stuck.py").write_text(
        "import asyncio\nfrom graphile_worker_py import task\n"
        "@task\nasync def hang(payload):\n    print('began', flush=True)\n"
        "    await asyncio.sleep(3600)\n"
    )
    cli.sql("select graphile_worker.add_job('hang')")
    process = cli.start("--tasks", "stuck")
    process.wait_for("began")
    process.terminate()
    _wait_for_log(process, "Stopping: Graceful worker shutdown due to SIGTERM")
    while process.returncode is None and "Stopping at once" not in process.stderr:
        # Signals that come at once are one: a process manager may send its own beside ours.
        process.terminate()
        _pause()
    assert process.wait(timeout=15) == 1, process.stderr
    rows = cli.sql("select attempts, locked_by, last_error from graphile_worker.jobs")
    assert rows == [(0, None, None)]


def test_watch_goes_on_with_tasks_that_were_changed_and_stops_when_told(
    cli: Cli, folder: Path
) -> None:
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "say.py").write_text("async def task(payload):\n    print('one', flush=True)\n")
    cli.sql("select graphile_worker.add_job('say')")
    process = cli.start("--watch")
    process.wait_for("one")
    # At once: nobody is to see half of it.
    (folder / "new").write_text("async def task(payload):\n    print('another', flush=True)\n")
    (folder / "new").rename(tasks / "say.py")
    _wait_for_log(process, "Reloaded 1 task(s)")
    cli.sql("select graphile_worker.add_job('say')")
    process.wait_for("another")
    process.terminate()
    assert process.wait(timeout=15) == 0, process.stderr
    assert cli.sql("select * from graphile_worker.jobs") == []


@pytest.mark.parametrize("module", ["saying", "pkg.saying"])
def test_watch_reloads_modules_too(cli: Cli, folder: Path, module: str) -> None:
    source = "from graphile_worker_py import task\n{}\n@task\ndef say(payload):\n    print({})\n"
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").touch()
    (folder / "pkg" / "word.py").write_text("WORD = 'one'\n")
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    helped = module.startswith("pkg")
    imported, said = ("from pkg.word import WORD", "WORD, flush=True") if helped else ("", "'one'")
    path.write_text(source.format(imported, said))
    cli.sql("select graphile_worker.add_job('say')")
    process = cli.start("--watch", "--tasks", module)
    _wait_for_log(process, "Completed job 1 (say")
    (folder / "new").write_text("WORD = 'another'\n" if helped else source.format("", "'another'"))
    (folder / "new").rename(folder / "pkg" / "word.py" if helped else path)
    _wait_for_log(process, f"Reloaded 1 task(s) from {module}")
    cli.sql("select graphile_worker.add_job('say')")
    _wait_for_log(process, "Completed job 2 (say")
    process.terminate()
    assert process.wait(timeout=15) == 0, process.stderr
    assert process.stdout.split() == ["one", "another"]


@pytest.mark.parametrize(
    "arguments",
    [["--tasks", "app_tasks", "--tasks", "more"], ["--tasks", "app_tasks,more"], []],
    ids=["flags", "commas", "file"],
)
def test_tasks_of_several_modules_are_loaded(cli: Cli, folder: Path, arguments: list[str]) -> None:
    if not arguments:
        (folder / "graphile_worker.toml").write_text("tasks = ['app_tasks', 'more']\n")
    for name in ("hello", "bye"):
        cli.sql(f"select graphile_worker.add_job('{name}', '{{\"name\": \"ada\"}}')")
    process = cli.run("--once", *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "hello ada\nbye ada\n"


@pytest.mark.parametrize("comes_first", ["the change", "the signal"])
def test_a_stop_while_watch_waits_for_a_job_is_not_forgotten(
    cli: Cli, folder: Path, comes_first: str
) -> None:
    tasks = folder / "tasks"
    tasks.mkdir()
    source = (
        "import asyncio\nfrom pathlib import Path\nasync def task(payload):\n"
        "    print('began', flush=True)\n"
        "    while not Path('go').exists():\n        await asyncio.sleep(0.01)\n"
    )
    (tasks / "say.py").write_text(source)
    cli.sql("select graphile_worker.add_job('say')")
    process = cli.start("--watch", "--log-level", "debug")
    process.wait_for("began")

    def change() -> None:
        (folder / "new").write_text(f"{source}    # changed\n")
        (folder / "new").rename(tasks / "say.py")
        _wait_for_log(process, "Reloaded 1 task(s)")

    def tell_to_stop() -> None:
        process.terminate()
        _wait_for_log(process, "gracefulShutdown signal=SIGTERM")

    if comes_first == "the change":
        change()
        _wait_for_log(process, "Stopping: Runner is stopping")
        tell_to_stop()
    else:
        tell_to_stop()
        change()
    (folder / "go").touch()
    assert process.wait(timeout=15) == 0, process.stderr
    assert "Not restarting after the reload: received SIGTERM" in process.stderr
    assert process.stderr.count("Working as") == 1
    assert cli.sql("select * from graphile_worker.jobs") == []


def _wait_for_log(process: Process, text: str) -> None:
    deadline = time.monotonic() + 15
    while text not in process.stderr:
        assert time.monotonic() < deadline, process.stderr
        _pause()


def _pause() -> None:
    time.sleep(0.05)


def test_it_tells_its_version_and_its_commands(cli: Cli) -> None:
    version = cli.run("--version")
    assert (
        version.stdout == f"graphile-worker-py, version {metadata.version('graphile-worker-py')}\n"
    )
    told = cli.run("--help")
    assert (version.returncode, told.returncode) == (0, 0)
    for command in ("run", "migrate", "add-job", "cleanup", "cron", "unlock"):
        assert f"  {command} " in told.stdout


@pytest.mark.parametrize(
    ("words", "found", "missing"),
    [
        ("", {"run", "jobs", "cron", "add-job"}, {"--tasks"}),
        ("re", {"remove", "reschedule"}, {"run"}),
        ("--ta", {"--tasks", "--task-directory"}, {"run"}),
        ("run --log", {"--log-level", "--log-format"}, {"run"}),
        ("--once --log-level de", {"debug"}, {"run"}),
        ("cron ", {"check", "due", "next", "status"}, {"jobs"}),
        ("jobs --st", {"--state"}, {"run"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(
    processes: Processes, shell: str, words: str, found: set[str], missing: set[str]
) -> None:
    *typed, last = words.split(" ")
    line = " ".join(["graphile-worker-py", *typed, last])
    environment = {
        "_GRAPHILE_WORKER_PY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": last if shell == "fish" else str(len(typed) + 1),
    }
    code = "from graphile_worker_py.cli.main import main; main(prog_name='graphile-worker-py')"
    process = processes.start([sys.executable, "-c", code], env=environment)
    assert process.wait() == 0, process.stderr
    completed = set(re.split(r"[,\s]+", process.stdout))
    assert found <= completed
    assert not missing & completed


@pytest.mark.parametrize("arguments", [["jobs"], ["--once", "--tasks", "few"], ["migrate"]])
def test_a_connection_that_was_not_given_is_named_as_the_reason(
    processes: Processes, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "few.py").write_text("from graphile_worker_py import task\n@task\ndef a(p): ...\n")
    command = [sys.executable, "-m", "graphile_worker_py", *arguments]
    process = processes.start(command, cwd=tmp_path, env={"PGDATABASE": "nowhere"})
    assert process.wait() == 1
    assert process.stderr.startswith(
        "Error: no connection given: set DATABASE_URL or --connection; for a server: "
        "`graphile-worker-py postgres` (OperationalError: "
    )
    process = processes.start(command, cwd=tmp_path, env={"DATABASE_URL": "host=127.0.0.1 port=1"})
    assert process.wait() == 1
    assert "no connection given" not in process.stderr


def test_a_health_port_that_is_in_use_is_named(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--health-port", port]
        command += ["--tasks", "tests.signalled:TASKS"]
        process = processes.start(command, cwd=ROOT)
        assert process.wait() == 1
    expected = f"health_port {port} can't be opened on 127.0.0.1: Address already in use\n"
    assert process.stderr.endswith(expected)


PLUGIN = """
from graphile_worker_py import Plugin

class Shouting(Plugin):
    async def run_job(self, ctx, proceed):
        print("HEY", flush=True)
        return await proceed(ctx)

quiet = Shouting()
"""


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
@pytest.mark.parametrize("hook", ["hooks_of_app:Shouting", "hooks_of_app:quiet"])
def test_a_plugin_is_named_by_its_path(
    cli: Cli, folder: Path, processes: Processes, source: str, hook: str
) -> None:
    (folder / "hooks_of_app.py").write_text(PLUGIN)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "say.py").write_text("def task(payload):\n    print('said', flush=True)\n")
    cli.sql("select graphile_worker.add_job('say')")
    arguments = ["--hook", hook] if source == "flag" else []
    environment = {"GRAPHILE_WORKER_HOOKS": hook} if source == "environment" else {}
    if source == "file":
        (folder / "graphile_worker.toml").write_text(f"hooks = ['{hook}']\n")
    script = Path(sys.executable).with_name("graphile-worker-py")
    environment["DATABASE_URL"] = cli.dsn
    process = processes.start([str(script), "--once", *arguments], cwd=folder, env=environment)
    assert process.wait() == 0, process.stderr
    assert process.stdout == "HEY\nsaid\n"
